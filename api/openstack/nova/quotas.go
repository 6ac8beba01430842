package nova

import (
	"net/http"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// quotaFields are Nova's words for the core's limits, and the last microversions with them: in a
// project's quota, and among the defaults.
var quotaFields = []struct {
	word, name        string
	last, classLast   int
	first, classFirst int
}{
	{word: "instances", name: compute.QuotaServers}, {word: "cores", name: compute.QuotaCores}, {word: "ram", name: compute.QuotaMemory},
	{word: "key_pairs", name: compute.QuotaKeyPairs}, {word: "metadata_items", name: compute.QuotaMetadata},
	{word: "server_groups", name: compute.QuotaGroups, classFirst: 50}, {word: "server_group_members", name: compute.QuotaGroupMembers, classFirst: 50},
	{word: "fixed_ips", name: compute.QuotaFixed, last: 35, classLast: 49}, {word: "floating_ips", name: compute.QuotaFloating, last: 35, classLast: 49},
	{word: "security_groups", name: compute.QuotaSecurity, last: 35, classLast: 49}, {word: "security_group_rules", name: compute.QuotaSecurityRules, last: 35, classLast: 49},
	{word: "injected_files", name: compute.QuotaFiles, last: 56, classLast: 56}, {word: "injected_file_content_bytes", name: compute.QuotaFileBytes, last: 56, classLast: 56},
	{word: "injected_file_path_bytes", name: compute.QuotaFilePath, last: 56, classLast: 56},
}

// eachQuota goes through the fields that a microversion has.
func eachQuota(minor int, class bool, fn func(word, name string)) {
	for _, f := range quotaFields {
		first, last := f.first, f.last
		if class {
			first, last = f.classFirst, f.classLast
		}
		if minor >= first && (last == 0 || minor <= last) {
			fn(f.word, f.name)
		}
	}
}

// quotaBody is what may be written, in a microversion.
func quotaBody(class bool) rule {
	return func(v version, path string, value any) error {
		props := []prop{}
		eachQuota(v.Minor, class, func(word, _ string) { props = append(props, may(word, number(-1, maxInt))) })
		if !class {
			props = append(props, may("force", boolean))
			if v.Minor < 36 {
				props = append(props, may("tenant_id", text(1, 255)))
			}
		}
		return object(props...)(v, path, value)
	}
}

// projectOf reads the project in the path.
func projectOf(r *http.Request, text string) (resource.ID, error) {
	id, err := resource.ParseID(text)
	if err != nil {
		return id, fault.Errorf(fault.Invalid, "Project ID %s is not a valid project.", text)
	}
	return id, nil
}

// quotaOf reads whose quota is meant.
func quotaOf(r *http.Request) (project, user resource.ID, err error) {
	if err := onlyKnown(r, 75, "user_id"); err != nil {
		return project, user, err
	}
	if project, err = projectOf(r, r.PathValue("id")); err != nil {
		return project, user, err
	}
	if text := r.URL.Query().Get("user_id"); text != "" {
		if user, err = resource.ParseID(text); err != nil {
			return project, user, fault.Errorf(fault.Invalid, "User ID %s is not a valid user.", text)
		}
	}
	return project, user, nil
}

func (s *server) showQuota(w http.ResponseWriter, r *http.Request) error {
	project, user, err := quotaOf(r)
	if err != nil {
		return err
	}
	usages, err := s.compute.Usages(r.Context(), project, user)
	if err != nil {
		return err
	}
	view := map[string]any{"id": r.PathValue("id")}
	eachQuota(minorOf(r), false, func(word, name string) { view[word] = usages[name].Limit })
	return answer(w, http.StatusOK, map[string]any{"quota_set": view})
}

// showQuotaPart answers the defaults, or what is in use beside each limit.
func (s *server) showQuotaPart(w http.ResponseWriter, r *http.Request) error {
	project, user, err := quotaOf(r)
	if err != nil {
		return err
	}
	view := map[string]any{"id": r.PathValue("id")}
	switch r.PathValue("part") {
	case "defaults":
		limits, err := s.compute.DefaultLimits(r.Context())
		if err != nil {
			return err
		}
		eachQuota(minorOf(r), false, func(word, name string) { view[word] = limits[name] })
	case "detail":
		usages, err := s.compute.Usages(r.Context(), project, user)
		if err != nil {
			return err
		}
		eachQuota(minorOf(r), false, func(word, name string) {
			view[word] = map[string]int{"limit": usages[name].Limit, "in_use": usages[name].Used, "reserved": 0}
		})
	default:
		return absent()
	}
	return answer(w, http.StatusOK, map[string]any{"quota_set": view})
}

// limitsOf reads the limits of a body that has passed its rules.
func limitsOf(b body, minor int, class bool) map[string]int {
	limits := map[string]int{}
	eachQuota(minor, class, func(word, name string) {
		if b.has(word) {
			limits[name] = b.int(word, 0)
		}
	})
	return limits
}

func (s *server) updateQuota(w http.ResponseWriter, r *http.Request) error {
	project, user, err := quotaOf(r)
	if err != nil {
		return err
	}
	if err := identity.Allow(r.Context(), "compute-quota.set", resource.Meta{ProjectID: project}); err != nil {
		return err
	}
	b, err := wrapped(r, "quota_set", quotaBody(false))
	if err != nil {
		return err
	}
	if err := s.compute.SetQuota(r.Context(), project, user, limitsOf(b, minorOf(r), false), b.bool("force")); err != nil {
		return err
	}
	usages, err := s.compute.Usages(r.Context(), project, user)
	if err != nil {
		return err
	}
	view := map[string]any{}
	eachQuota(minorOf(r), false, func(word, name string) { view[word] = usages[name].Limit })
	return answer(w, http.StatusOK, map[string]any{"quota_set": view})
}

func (s *server) deleteQuota(w http.ResponseWriter, r *http.Request) error {
	project, user, err := quotaOf(r)
	if err != nil {
		return err
	}
	if err := s.compute.ResetQuota(r.Context(), project, user); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

// showQuotaClass answers the defaults: there is one class of projects.
func (s *server) showQuotaClass(w http.ResponseWriter, r *http.Request) error {
	if err := identity.Allow(r.Context(), "compute-quota.set", resource.Meta{}); err != nil {
		return err
	}
	limits, err := s.compute.DefaultLimits(r.Context())
	if err != nil {
		return err
	}
	view := map[string]any{"id": r.PathValue("id")}
	eachQuota(minorOf(r), true, func(word, name string) { view[word] = limits[name] })
	return answer(w, http.StatusOK, map[string]any{"quota_class_set": view})
}

func (s *server) updateQuotaClass(w http.ResponseWriter, r *http.Request) error {
	if err := identity.Allow(r.Context(), "compute-quota.set", resource.Meta{}); err != nil {
		return err
	}
	b, err := wrapped(r, "quota_class_set", quotaBody(true))
	if err != nil {
		return err
	}
	if r.PathValue("id") != "default" {
		return fault.Errorf(fault.Invalid, "There is no quota class but 'default'.")
	}
	limits := limitsOf(b, minorOf(r), true)
	if err := s.compute.SetQuota(r.Context(), resource.ID{}, resource.ID{}, limits, true); err != nil {
		return err
	}
	now, err := s.compute.DefaultLimits(r.Context())
	if err != nil {
		return err
	}
	view := map[string]any{}
	eachQuota(minorOf(r), true, func(word, name string) { view[word] = now[name] })
	return answer(w, http.StatusOK, map[string]any{"quota_class_set": view})
}

// limitWords are Nova's words among the absolute limits: for a limit, for what is in use, and the last
// microversion with them.
var limitWords = []struct {
	name, limit, used string
	last              int
}{
	{compute.QuotaServers, "maxTotalInstances", "totalInstancesUsed", 0}, {compute.QuotaCores, "maxTotalCores", "totalCoresUsed", 0},
	{compute.QuotaMemory, "maxTotalRAMSize", "totalRAMUsed", 0}, {compute.QuotaKeyPairs, "maxTotalKeypairs", "", 0},
	{compute.QuotaMetadata, "maxServerMeta", "", 0}, {compute.QuotaMetadata, "maxImageMeta", "", 38},
	{compute.QuotaGroups, "maxServerGroups", "totalServerGroupsUsed", 0}, {compute.QuotaGroupMembers, "maxServerGroupMembers", "", 0},
	{compute.QuotaFiles, "maxPersonality", "", 56}, {compute.QuotaFileBytes, "maxPersonalitySize", "", 56},
	{compute.QuotaFloating, "maxTotalFloatingIps", "totalFloatingIpsUsed", 35}, {compute.QuotaSecurity, "maxSecurityGroups", "totalSecurityGroupsUsed", 35},
	{compute.QuotaSecurityRules, "maxSecurityGroupRules", "", 35},
}

func (s *server) showLimits(w http.ResponseWriter, r *http.Request) error {
	if err := onlyKnown(r, 75, "tenant_id", "reserved"); err != nil {
		return err
	}
	project := identity.ActorOf(r.Context()).ProjectID
	if text := r.URL.Query().Get("tenant_id"); text != "" {
		var err error
		if project, err = projectOf(r, text); err != nil {
			return err
		}
		if project != identity.ActorOf(r.Context()).ProjectID {
			if err := identity.Allow(r.Context(), "server.list-all", resource.Meta{}); err != nil {
				return err
			}
		}
	}
	usages, err := s.compute.Usages(r.Context(), project, resource.ID{})
	if err != nil {
		return err
	}
	absolute := map[string]any{}
	for _, l := range limitWords {
		if l.last != 0 && minorOf(r) > l.last {
			continue
		}
		absolute[l.limit] = usages[l.name].Limit
		if l.used != "" {
			absolute[l.used] = usages[l.name].Used
		}
	}
	if minorOf(r) < 36 {
		tx := s.compute.State.Latest()
		groups, _ := network.Groups().Sum(tx, "project", state.KeyOf(project))
		floating, _ := network.FloatingAddresses().Sum(tx, "project", state.KeyOf(project))
		absolute["totalSecurityGroupsUsed"], absolute["totalFloatingIpsUsed"] = groups, floating
	}
	return answer(w, http.StatusOK, map[string]any{"limits": map[string]any{"rate": []any{}, "absolute": absolute}})
}
