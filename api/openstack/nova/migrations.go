package nova

import (
	"net/http"
	"strconv"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

var migrateBody = orNull(object(since(56, may("host", orNull(hostName)))))

// migrateRule lets be what was never looked at before 2.56.
func migrateRule(v version, path string, value any) error {
	if v.Minor < 56 {
		return nil
	}
	return migrateBody(v, path, value)
}

var liveBody = object(
	need("host", orNull(hostName)),
	until(24, need("block_migration", boolean)), until(24, need("disk_over_commit", boolean)),
	since(25, need("block_migration", either(boolean, oneOf("auto")))),
	since(30, until(67, may("force", boolean))),
)

var evacuateBody = object(
	may("host", hostName), may("adminPass", adminPass),
	until(13, need("onSharedStorage", boolean)),
	since(29, until(67, may("force", boolean))),
)

func (s *server) migrate(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	to := ""
	if minorOf(r) >= 56 {
		to = b.text("host")
	}
	if err := s.compute.Migrate(r.Context(), id, to); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

// unforced refuses to go to a host without asking whether it has room: here it is always asked.
func unforced(b body) error {
	if b.bool("force") {
		return fault.Errorf(fault.Invalid, "A host cannot be forced: whether it suits the server is always checked.")
	}
	return nil
}

func (s *server) migrateLive(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	if err := unforced(b); err != nil {
		return err
	}
	if b.text("block_migration") != "auto" && !b.bool("block_migration") {
		switch _, srv, err := s.compute.Get(r.Context(), id); {
		case err != nil:
			return err
		case srv.Storage == "":
			return fault.Errorf(fault.Invalid, "Instance %s is not on shared storage: live migration without block_migration requires shared storage.", id)
		}
	}
	if err := s.compute.LiveMigrate(r.Context(), id, b.text("host")); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

func (s *server) evacuate(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	if err := unforced(b); err != nil {
		return err
	}
	_, srv, err := s.compute.Get(r.Context(), id)
	if err != nil {
		return err
	}
	password, shared := b.text("adminPass"), srv.Lasts()
	switch {
	case minorOf(r) < 14 && b.bool("onSharedStorage") && !shared:
		return fault.Errorf(fault.Invalid, "Invalid shared storage: the disks of instance %s are on its host.", id)
	case minorOf(r) < 14 && !b.bool("onSharedStorage") && shared:
		return fault.Errorf(fault.Invalid, "Invalid shared storage: the disks of instance %s are on storage that other hosts reach, and are kept: onSharedStorage must be true.", id)
	case shared && password != "":
		return fault.Errorf(fault.Invalid, "admin password can't be changed on existing disk")
	case !shared && password == "":
		password = newPassword()
	}
	if err := s.compute.Evacuate(r.Context(), id, b.text("host"), password); err != nil {
		return err
	}
	switch {
	case minorOf(r) < 14 && shared:
		return answer(w, http.StatusOK, map[string]string{})
	case minorOf(r) < 14:
		return answer(w, http.StatusOK, map[string]string{"adminPass": password})
	}
	return accepted(w, http.StatusOK)
}

// migrationTypes are Nova's words for what was asked for.
var migrationTypes = map[compute.Task]string{compute.Migrating: "migration", compute.LiveMigrating: "live-migration",
	compute.Reshaping: "resize", compute.Evacuating: "evacuation"}

// migrationStatuses are Nova's words for how a migration stands; liveStatuses those that differ for a live one.
var (
	migrationStatuses = map[compute.MigrationState]string{compute.Preparing: "pre-migrating", compute.Sending: "migrating",
		compute.Finishing: "post-migrating", compute.Moved: "finished", compute.Confirmed: "confirmed", compute.Reverted: "reverted",
		compute.Aborted: "error", compute.Cancelled: "cancelled"}
	liveStatuses = map[compute.MigrationState]string{compute.Preparing: "preparing", compute.Sending: "running",
		compute.Finishing: "running", compute.Moved: "completed"}
)

func migrationStatus(m *compute.Migration) string {
	switch word := liveStatuses[m.State]; {
	case m.Task == compute.LiveMigrating && word != "":
		return word
	case m.Task == compute.Evacuating && m.State == compute.Moved:
		return "done"
	}
	return migrationStatuses[m.State]
}

// ends names a migration's two hosts, as far as they are there still.
func ends(tx *state.Tx, m *compute.Migration) (from, to any) {
	name := func(id resource.ID) any {
		if h, ok := host.Table().PeekOne(tx, id); ok {
			return h.Name
		}
		return nil
	}
	return name(m.From), name(m.To)
}

// migrationView is what the list over all servers and that of one have in common.
func migrationView(minor int, tx *state.Tx, m *compute.Migration) map[string]any {
	from, to := ends(tx, m)
	view := map[string]any{"id": m.Number, "status": migrationStatus(m), "source_compute": from, "source_node": from, "dest_compute": to,
		"dest_node": to, "dest_host": nil, "created_at": isoTime(m.CreatedAt), "updated_at": isoTime(m.UpdatedAt)}
	if h, ok := host.Table().PeekOne(tx, m.To); ok && h.Address.IsValid() {
		view["dest_host"] = h.Address.String()
	}
	if minor >= 59 {
		view["uuid"] = m.ID.String()
	}
	if minor >= 80 {
		view["user_id"], view["project_id"] = m.UserID.Hex(), m.ProjectID.Hex()
	}
	return view
}

// flavorNumber is a flavor as the number that Nova's database gives it: its ref if that is one.
func flavorNumber(tx *state.Tx, id resource.ID) any {
	if f, ok := compute.Flavors().PeekOne(tx, id); ok {
		if n, err := strconv.Atoi(f.Ref); err == nil {
			return n
		}
	}
	return nil
}

func (s *server) listMigrations(w http.ResponseWriter, r *http.Request) error {
	q, err := migrationQuery(r)
	if err != nil {
		return err
	}
	minor := minorOf(r)
	if err := s.continueAfter(r, &q); err != nil {
		return err
	}
	tx, found, more, err := s.compute.ListMigrations(r.Context(), q)
	if err != nil {
		return err
	}
	views := []map[string]any{}
	for _, m := range found {
		view := migrationView(minor, tx, m)
		view["instance_uuid"] = m.ServerID.String()
		view["old_instance_type_id"], view["new_instance_type_id"] = flavorNumber(tx, m.OldFlavor), flavorNumber(tx, m.NewFlavor)
		if minor >= 23 {
			view["migration_type"] = migrationTypes[m.Task]
			if m.Task == compute.LiveMigrating && !m.State.Over() {
				view["links"] = s.links(r, "servers/"+m.ServerID.String()+"/migrations/"+strconv.Itoa(m.Number))
			}
		}
		views = append(views, view)
	}
	doc := map[string]any{"migrations": views}
	if more && minor >= 59 {
		doc["migrations_links"] = []any{link("next", openstack.NextLink(r, s.prefix, found[len(found)-1].ID.String()))}
	}
	return answer(w, http.StatusOK, doc)
}

// migrationQuery reads which migrations are asked for (os-migrations).
func migrationQuery(r *http.Request) (q compute.MigrationQuery, err error) {
	minor, values := minorOf(r), r.URL.Query()
	known := []string{"hidden", "host", "instance_uuid", "limit", "marker", "migration_type", "source_compute", "status", "changes-since"}
	if minor >= 66 {
		known = append(known, "changes-before")
	}
	if minor >= 80 {
		known = append(known, "user_id", "project_id")
	}
	if err := onlyKnown(r, 59, known...); err != nil {
		return q, err
	}
	if minor >= 59 {
		if text := values.Get("changes-since"); text != "" {
			if q.Since, err = readTime("changes-since", text); err != nil {
				return q, err
			}
		}
		if text := values.Get("changes-before"); text != "" {
			if q.Before, err = readTime("changes-before", text); err != nil {
				return q, err
			}
		}
	}
	ids := map[string]*resource.ID{"instance_uuid": &q.ServerID}
	if minor >= 80 {
		ids["user_id"], ids["project_id"] = &q.UserID, &q.ProjectID
	}
	nobodys := false
	for name, into := range ids {
		if text := values.Get(name); text != "" {
			if *into, err = resource.ParseID(text); err != nil {
				nobodys = true // nothing has such an ID
			}
		}
	}
	q.Keep = func(m *compute.Migration) bool {
		asked := func(name, is string) bool { return values.Get(name) == "" || values.Get(name) == is }
		return !nobodys && asked("status", migrationStatus(m)) && asked("migration_type", migrationTypes[m.Task])
	}
	return q, nil
}

// continueAfter adds to a query what only the state knows: which hosts have the names that were asked for, and from
// where on a page begins.
func (s *server) continueAfter(r *http.Request, q *compute.MigrationQuery) error {
	tx, err := s.compute.State.View(r.Context())
	if err != nil {
		return err
	}
	values, keep := r.URL.Query(), q.Keep
	q.Keep = func(m *compute.Migration) bool {
		from, to := ends(tx, m)
		at, source := values.Get("host"), values.Get("source_compute")
		return keep(m) && (at == "" || from == at || to == at) && (source == "" || from == source)
	}
	if !q.ServerID.IsZero() && !compute.Servers().Has(tx, q.ServerID) {
		q.ServerID, q.Keep = resource.ID{}, func(*compute.Migration) bool { return false }
	}
	if minorOf(r) < 59 {
		return nil
	}
	limit, marker, err := paging(values)
	if err != nil {
		return err
	}
	q.Most = limit
	if !marker.IsZero() {
		m, ok := compute.Migrations().PeekOne(tx, marker)
		if !ok {
			return fault.Errorf(fault.Invalid, "Marker %s not found", marker)
		}
		q.After = m.Number
	}
	return nil
}

// liveMigrations are those of the server in the path that are under way: at most one.
func (s *server) liveMigrations(r *http.Request) (*state.Tx, *compute.Server, []*compute.Migration, error) {
	id, err := serverID(r)
	if err != nil {
		return nil, nil, nil, err
	}
	tx, found, _, err := s.compute.ListMigrations(r.Context(), compute.MigrationQuery{ServerID: id,
		Keep: func(m *compute.Migration) bool { return m.Task == compute.LiveMigrating && !m.State.Over() }})
	if err != nil {
		return nil, nil, nil, err
	}
	srv, _ := compute.Servers().PeekOne(tx, id)
	return tx, srv, found, nil
}

// liveView adds how far a live migration is.
func liveView(minor int, tx *state.Tx, srv *compute.Server, m *compute.Migration) map[string]any {
	view := migrationView(minor, tx, m)
	view["server_uuid"] = m.ServerID.String()
	var here compute.Transit
	if srv.Move != nil {
		here = srv.Move.Here
	}
	for word, p := range map[string]compute.Progress{"memory": here.Memory, "disk": here.Disk} {
		view[word+"_total_bytes"], view[word+"_processed_bytes"], view[word+"_remaining_bytes"] = p.Total, p.Sent, p.Left
	}
	return view
}

func (s *server) listServerMigrations(w http.ResponseWriter, r *http.Request) error {
	if err := notBefore(r, 23); err != nil {
		return err
	}
	tx, srv, found, err := s.liveMigrations(r)
	if err != nil {
		return err
	}
	views := []map[string]any{}
	for _, m := range found {
		views = append(views, liveView(minorOf(r), tx, srv, m))
	}
	return answer(w, http.StatusOK, map[string]any{"migrations": views})
}

func (s *server) showServerMigration(w http.ResponseWriter, r *http.Request) error {
	if err := notBefore(r, 23); err != nil {
		return err
	}
	tx, srv, found, err := s.liveMigrations(r)
	if err != nil {
		return err
	}
	for _, m := range found {
		if strconv.Itoa(m.Number) == r.PathValue("migration") {
			return answer(w, http.StatusOK, map[string]any{"migration": liveView(minorOf(r), tx, srv, m)})
		}
	}
	return fault.Errorf(fault.NotFound, "In-progress live migration %s is not found for server %s.", r.PathValue("migration"), srv.ID)
}

// migrationPath reads the server and the migration in a path.
func migrationPath(r *http.Request) (id resource.ID, number int, err error) {
	if id, err = serverID(r); err != nil {
		return id, 0, err
	}
	if number, err = strconv.Atoi(r.PathValue("migration")); err != nil {
		return id, 0, fault.Errorf(fault.NotFound, "Migration %s for server %s could not be found.", r.PathValue("migration"), id)
	}
	return id, number, nil
}

func (s *server) deleteServerMigration(w http.ResponseWriter, r *http.Request) error {
	if err := notBefore(r, 24); err != nil {
		return err
	}
	id, number, err := migrationPath(r)
	if err != nil {
		return err
	}
	if minorOf(r) < 65 { // before that, one that is still prepared cannot be given up
		_, _, found, err := s.liveMigrations(r)
		if err != nil {
			return err
		}
		for _, m := range found {
			if m.Number == number && m.State == compute.Preparing {
				return fault.Errorf(fault.Invalid, "Migration %d state of instance %s is preparing. Cannot abort while the migration is in this state.", number, id)
			}
		}
	}
	if err := s.compute.AbortMove(r.Context(), id, number); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

func (s *server) serverMigrationAction(w http.ResponseWriter, r *http.Request) error {
	if err := notBefore(r, 22); err != nil {
		return err
	}
	id, number, err := migrationPath(r)
	if err != nil {
		return err
	}
	if _, err := read(r, object(need("force_complete", null))); err != nil {
		return err
	}
	if err := s.compute.HurryMove(r.Context(), id, number); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}
