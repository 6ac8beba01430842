package native

import (
	"net/http"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A retirement asks for a host's maintenance.
type retirement struct {
	Reason string `json:"reason"`
	Stop   bool   `json:"stop"`    // what cannot go elsewhere is stopped, and stays
	AtOnce int    `json:"at_once"` // 0: as many as is usual
}

// A leaving is what a host's maintenance would do to one server.
type leaving struct {
	ServerID  resource.ID `json:"server_id"`
	ProjectID resource.ID `json:"project_id"`
	Name      string      `json:"name"`
	Way       string      `json:"way"` // "live", "cold", "stop", "offload", "wait" or "stay"
	To        string      `json:"to"`
	Why       string      `json:"why"`      // it does not leave
	Note      string      `json:"note"`     // what else is to be known of its leaving
	Forecast  *forecast   `json:"forecast"` // of its way, if it leaves
}

type leavings struct {
	Servers []leaving `json:"servers"`
}

// A fencing says what switches a host off.
type fencing struct {
	Driver      string `json:"driver"` // "exec", "redfish", or "" for nothing
	Program     string `json:"program"`
	URL         string `json:"url"`
	Username    string `json:"username"`
	Password    string `json:"password"`
	Fingerprint string `json:"fingerprint"`
}

// A keepPatch is what an owner may say of how a server is kept alive. What is left out stays.
type keepPatch struct {
	Elsewhere *bool   `json:"elsewhere"`
	Priority  *int    `json:"priority"`
	OnCrash   *string `json:"on_crash"`
}

// A keeping is how guests are kept alive in the whole cloud.
type keeping struct {
	Leases       bool    `json:"leases"`
	StormPercent int     `json:"storm_percent"`
	AtOnce       int     `json:"at_once"`
	StayOff      bool    `json:"stay_off"`
	StayCrashed  bool    `json:"stay_crashed"`
	Pack         bool    `json:"pack"`
	CPURatio     float64 `json:"cpu_ratio"` // how much more than a host has its guests may have; 0: as by default
	MemoryRatio  float64 `json:"memory_ratio"`
	DiskRatio    float64 `json:"disk_ratio"`
	ShelvedStay  int     `json:"shelved_stay_seconds"` // on their hosts; below 0 for as long as nobody says otherwise
	InForce      ratios  `json:"ratios_in_force"`      // where no aggregate says otherwise
}

// ratios are how much more than a host has its guests may have.
type ratios struct {
	CPU    float64 `json:"cpu"`
	Memory float64 `json:"memory"`
	Disk   float64 `json:"disk"`
}

// A keepingPatch changes it. What is left out stays.
type keepingPatch struct {
	Leases       *bool    `json:"leases"`
	StormPercent *int     `json:"storm_percent"`
	AtOnce       *int     `json:"at_once"`
	StayOff      *bool    `json:"stay_off"`
	StayCrashed  *bool    `json:"stay_crashed"`
	Pack         *bool    `json:"pack"`
	CPURatio     *float64 `json:"cpu_ratio"`
	MemoryRatio  *float64 `json:"memory_ratio"`
	DiskRatio    *float64 `json:"disk_ratio"`
	ShelvedStay  *int     `json:"shelved_stay_seconds"`
}

// seconds is a span of time that is below zero for one without an end.
func seconds(d time.Duration) int {
	if d < 0 {
		return -1
	}
	return int(d.Seconds())
}

func (s *Server) hosts() *host.Service { return &host.Service{State: s.State} }

// hostIn is the host that the path names. Who may not know is told that there is none.
func (s *Server) hostIn(r *http.Request) (resource.ID, *kind, error) {
	k := s.byName[host.Table().Kind()]
	id, err := resource.ParseID(r.PathValue("id"))
	if err != nil {
		return id, k, missing(k, r.PathValue("id"))
	}
	if _, err := s.hosts().Get(r.Context(), id); err != nil {
		return id, k, missing(k, id)
	}
	return id, k, nil
}

func (a retirement) core() compute.Retirement {
	return compute.Retirement{Reason: a.Reason, Stop: a.Stop, AtOnce: a.AtOnce}
}

// retire begins a host's maintenance.
func (s *Server) retire(w http.ResponseWriter, r *http.Request) error {
	id, _, err := s.hostIn(r)
	if err != nil {
		return err
	}
	var asked retirement
	if err := readJSON(r, &asked); err != nil {
		return err
	}
	op, err := s.Compute.Retire(r.Context(), id, asked.core())
	if err != nil {
		return err
	}
	return s.writeChanged(w, r, http.StatusAccepted, s.byName[operation.Table().Kind()], op)
}

// planRetirement tells what a host's maintenance would do.
func (s *Server) planRetirement(w http.ResponseWriter, r *http.Request) error {
	id, _, err := s.hostIn(r)
	if err != nil {
		return err
	}
	var asked retirement
	if err := readJSON(r, &asked); err != nil {
		return err
	}
	all, err := s.Compute.ForecastRetirement(r.Context(), id, asked.core())
	if err != nil {
		return err
	}
	out := leavings{Servers: []leaving{}}
	for _, l := range all {
		out.Servers = append(out.Servers, leaving{l.ServerID, l.Project, l.Name, string(l.Way), l.To, l.Why, l.Note, forecastFrom(l.Forecast)})
	}
	s.write(w, r, http.StatusOK, out)
	return nil
}

// vouch takes an operator's word that a lost host is dead.
func (s *Server) vouch(w http.ResponseWriter, r *http.Request) error {
	id, k, err := s.hostIn(r)
	if err != nil {
		return err
	}
	h, err := s.hosts().Vouch(r.Context(), id)
	if err != nil {
		return err
	}
	return s.writeChanged(w, r, http.StatusOK, k, h)
}

// putFencing says how a host is fenced.
func (s *Server) putFencing(w http.ResponseWriter, r *http.Request) error {
	id, k, err := s.hostIn(r)
	if err != nil {
		return err
	}
	var f fencing
	if err := readJSON(r, &f); err != nil {
		return err
	}
	h, err := s.hosts().SetFencing(r.Context(), id, host.Fencing{Driver: f.Driver, Program: f.Program, URL: f.URL, Username: f.Username, Password: f.Password, Fingerprint: f.Fingerprint})
	if err != nil {
		return err
	}
	return s.writeChanged(w, r, http.StatusOK, k, h)
}

// patchKeep changes how a server is kept alive.
func (s *Server) patchKeep(w http.ResponseWriter, r *http.Request) error {
	k := s.byName[compute.Servers().Kind()]
	id, err := resource.ParseID(r.PathValue("id"))
	if err != nil {
		return missing(k, r.PathValue("id"))
	}
	var p keepPatch
	if err := readJSON(r, &p); err != nil {
		return err
	}
	srv, err := s.Compute.SetKeep(r.Context(), id, func(keep *compute.Keep) {
		set(&keep.Elsewhere, p.Elsewhere)
		set(&keep.Priority, p.Priority)
		if p.OnCrash != nil {
			keep.OnCrash = compute.OnCrash(*p.OnCrash)
		}
	})
	if fault.Is(err, fault.NotFound) {
		return missing(k, id)
	} else if err != nil {
		return err
	}
	return s.writeChanged(w, r, http.StatusOK, k, srv)
}

// set takes over what was said.
func set[T any](to, said *T) {
	if said != nil {
		*to = *said
	}
}

// keeping tells how guests are kept alive.
func (s *Server) keeping(w http.ResponseWriter, r *http.Request) error {
	if err := identity.Allow(r.Context(), "keeping.get", resource.Meta{}); err != nil {
		return err
	}
	tx, err := s.State.View(r.Context())
	if err != nil {
		return err
	}
	k := host.KeepingOf(tx)
	s.writeKeeping(w, r, &k)
	return nil
}

func (s *Server) writeKeeping(w http.ResponseWriter, r *http.Request, k *host.Keeping) {
	now := s.Compute.Ratios(k)
	s.write(w, r, http.StatusOK, keeping{k.Leases, k.StormPercent, k.AtOnce, k.StayOff, k.StayCrashed, k.Pack, k.CPURatio, k.MemoryRatio, k.DiskRatio, seconds(k.ShelvedStay),
		ratios{now[0], now[1], now[2]}})
}

// patchKeeping changes it.
func (s *Server) patchKeeping(w http.ResponseWriter, r *http.Request) error {
	var p keepingPatch
	if err := readJSON(r, &p); err != nil {
		return err
	}
	k, err := s.hosts().SetKeeping(r.Context(), func(k *host.Keeping) {
		set(&k.Leases, p.Leases)
		set(&k.StormPercent, p.StormPercent)
		set(&k.AtOnce, p.AtOnce)
		set(&k.StayOff, p.StayOff)
		set(&k.StayCrashed, p.StayCrashed)
		set(&k.Pack, p.Pack)
		set(&k.CPURatio, p.CPURatio)
		set(&k.MemoryRatio, p.MemoryRatio)
		set(&k.DiskRatio, p.DiskRatio)
		if p.ShelvedStay != nil {
			k.ShelvedStay = time.Duration(*p.ShelvedStay) * time.Second
		}
	})
	if err != nil {
		return err
	}
	s.writeKeeping(w, r, k)
	return nil
}

var (
	aboutRetire = about{id: "retireHost", summary: "Begin a host's maintenance: nothing new comes to it, and its servers are taken elsewhere. It ends when the host is enabled.",
		tag: "hosts", body: "Retirement", parameters: changing,
		answers: map[int]answer{202: {what: "The operation that empties the host; what stays is in the host's drain.", schema: "Operation"}, 200: planAnswer}, errors: []int{400, 404, 409}}
	aboutPlanRetirement = about{id: "planHostRetirement", summary: "Tell, server by server, what a host's maintenance would do and what it would take, and do nothing. Running guests are looked at for a second.", tag: "hosts", body: "Retirement",
		answers: map[int]answer{200: {what: "What each server would do.", schema: "Leavings"}}, errors: []int{400, 404, 409}}
	aboutVouch = about{id: "vouchForHost", summary: "Give your word that a lost host is off, or runs nothing any more: what was on it may then be started elsewhere. Nobody checks it.",
		tag: "hosts", parameters: changing, answers: map[int]answer{200: {what: "The host; or, with the header Unkai-Plan, a plan.", schema: "Host"}}, errors: []int{404, 409}}
	aboutPutFencing = about{id: "setHostFencing", summary: "Say what makes sure that a lost host is off: a program of the controller's, or its management controller by Redfish.",
		tag: "hosts", body: "Fencing", parameters: changing, answers: map[int]answer{200: {what: "The host; or, with the header Unkai-Plan, a plan.", schema: "Host"}}, errors: []int{400, 404}}
	aboutPatchKeep = about{id: "keepServer", summary: "Say what is done to keep a server alive: whether it is made anew elsewhere, from its image, when its host is dead, and what is done when it crashes.",
		tag: "servers", body: "KeepPatch", parameters: changing, answers: map[int]answer{200: {what: "The server; or, with the header Unkai-Plan, a plan.", schema: "Server"}}, errors: []int{400, 403, 404, 409}}
	aboutKeeping = about{id: "keeping", summary: "How guests are kept alive in this cloud. Only for an admin.", tag: "about",
		answers: map[int]answer{200: {what: "What is the case.", schema: "Keeping"}}, errors: []int{403}}
	aboutPatchKeeping = about{id: "setKeeping", summary: "Change how guests are kept alive in this cloud. Only for an admin.", tag: "about", body: "KeepingPatch", parameters: changing,
		answers: map[int]answer{200: {what: "What is the case now; or, with the header Unkai-Plan, a plan.", schema: "Keeping"}}, errors: []int{400, 403}}
)
