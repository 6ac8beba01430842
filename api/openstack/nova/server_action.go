package nova

import (
	"bytes"
	"net/http"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// An action is one of the things that can be posted to a server: its rule, the microversions that have it, and what it
// does. The handler writes the answer itself, or leaves it at 202 without a body.
type action struct {
	rule        rule
	first, last int
	do          func(s *server, w http.ResponseWriter, r *http.Request, id resource.ID, b body) error
}

// plain is an action that only starts one of the core's tasks.
func plain(task compute.Task) action {
	return action{rule: anything, do: func(s *server, w http.ResponseWriter, r *http.Request, id resource.ID, _ body) error {
		if err := s.compute.Do(r.Context(), id, task); err != nil {
			return err
		}
		return accepted(w, http.StatusAccepted)
	}}
}

// refused is an action that this cloud does not have.
func refused(rule rule, why string) action {
	return action{rule: rule, do: func(s *server, w http.ResponseWriter, r *http.Request, id resource.ID, _ body) error {
		if _, _, err := s.compute.Get(r.Context(), id); err != nil {
			return err
		}
		return fault.Errorf(fault.Unsupported, "%s", why).WithCode("not-implemented")
	}}
}

var rebuildBody = object(
	need("imageRef", uuid),
	may("name", name), may("adminPass", adminPass), may("metadata", metadata), may("preserve_ephemeral", boolean),
	may("OS-DCF:diskConfig", oneOf("AUTO", "MANUAL")), may("accessIPv4", accessV4), may("accessIPv6", accessV6),
	since(1, until(56, may("personality", files))),
	since(19, may("description", orNull(text(0, 255)))),
	since(54, may("key_name", orNull(text(1, 255)))),
	since(57, may("user_data", orNull(base64Text(65535)))),
	since(63, may("trusted_image_certificates", certs)),
	since(90, may("hostname", guestName)),
)

var lockBody = either(null, object(since(73, may("locked_reason", text(1, 255)))))

// actions are what can be posted to a server.
var actions map[string]action

func init() { // the handlers reach the table
	actions = map[string]action{
		"addFixedIp":          {rule: object(need("networkId", text(1, 36))), last: 43, do: (*server).addFixedIP},
		"addFloatingIp":       {rule: object(need("address", address(0)), may("fixed_address", address(0))), last: 43, do: (*server).addFloatingIP},
		"addSecurityGroup":    {rule: object(need("name", text(1, 255))), do: (*server).addSecurityGroup},
		"changePassword":      refused(object(need("adminPass", text(0, 0))), "Unable to set password on instance: its image has no guest agent."),
		"confirmResize":       {rule: anything, do: (*server).confirmResize},
		"createBackup":        {rule: backupBody, do: (*server).createBackup},
		"createImage":         {rule: imageBody, do: (*server).createImage},
		"evacuate":            {rule: evacuateBody, do: (*server).evacuate},
		"forceDelete":         {rule: anything, do: (*server).forceDelete},
		"lock":                {rule: lockBody, do: (*server).lock},
		"migrate":             {rule: migrateRule, do: (*server).migrate},
		"os-getConsoleOutput": {rule: object(may("length", orNull(either(number(-1, maxInt), pattern(0, 0, `^-?[0-9]+$`))))), do: (*server).consoleOutput},
		"os-getRDPConsole":    {rule: object(need("type", oneOf("rdp-html5"))), last: 5, do: (*server).noConsole},
		"os-getSPICEConsole":  {rule: object(need("type", oneOf("spice-html5"))), last: 5, do: (*server).noConsole},
		"os-getSerialConsole": {rule: object(need("type", oneOf("serial"))), last: 5, do: (*server).oldConsole},
		"os-getVNCConsole":    {rule: object(need("type", oneOf("novnc", "xvpvnc"))), last: 5, do: (*server).oldConsole},
		"os-migrateLive":      {rule: liveBody, do: (*server).migrateLive},
		"os-resetState":       {rule: object(need("state", oneOf("active", "error"))), do: (*server).resetState},
		"os-start":            plain(compute.Starting),
		"os-stop":             plain(compute.Stopping),
		"pause":               plain(compute.Pausing),
		"reboot":              {rule: object(need("type", oneOf("HARD", "Hard", "hard", "SOFT", "Soft", "soft"))), do: (*server).reboot},
		"rebuild":             {rule: rebuildBody, do: (*server).rebuild},
		"removeFixedIp":       {rule: object(need("address", address(0))), last: 43, do: (*server).removeFixedIP},
		"removeFloatingIp":    {rule: object(need("address", address(0))), last: 43, do: (*server).removeFloatingIP},
		"removeSecurityGroup": {rule: object(need("name", text(1, 255))), do: (*server).removeSecurityGroup},
		"rescue":              refused(anything, "Servers cannot be rescued here yet."),
		"resize":              {rule: object(need("flavorRef", text(1, 255)), may("OS-DCF:diskConfig", oneOf("AUTO", "MANUAL"))), do: (*server).resize},
		"restore":             {rule: anything, do: (*server).restore},
		"resume":              plain(compute.Resuming),
		"revertResize":        {rule: anything, do: (*server).revertResize},
		"shelve":              {rule: anything, do: (*server).shelve},
		"shelveOffload":       {rule: anything, do: (*server).shelveOffload},
		"suspend":             plain(compute.Suspending),
		"trigger_crash_dump":  {rule: null, first: 17, do: (*server).crashDump},
		"unlock":              {rule: anything, do: (*server).unlock},
		"unpause":             plain(compute.Unpausing),
		"unrescue":            refused(anything, "Servers cannot be rescued here yet."),
		"unshelve":            {rule: unshelveRule, do: (*server).unshelve},
	}
}

func (s *server) serverAction(w http.ResponseWriter, r *http.Request) error {
	value, err := decode(r)
	if err != nil {
		return err
	}
	m, ok := value.(map[string]any)
	if !ok || len(m) != 1 {
		return fault.Errorf(fault.Invalid, "Malformed request body: it must name one action.")
	}
	v := versionOf(r)
	for word, value := range m {
		a, known := actions[word]
		if !known {
			return fault.Errorf(fault.Invalid, "There is no such action: %.100s", word)
		}
		if v.Minor < a.first || a.last != 0 && v.Minor > a.last {
			return absent()
		}
		id, err := serverID(r)
		if err != nil {
			return err
		}
		if err := a.rule(v, word, value); err != nil {
			return err
		}
		b, _ := value.(map[string]any)
		return a.do(s, w, r, id, b)
	}
	return nil
}

func (s *server) reboot(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	task := compute.HardRebooting
	if c := b.text("type")[0]; c == 's' || c == 'S' {
		task = compute.SoftRebooting
	}
	if err := s.compute.Do(r.Context(), id, task); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

func (s *server) forceDelete(w http.ResponseWriter, r *http.Request, id resource.ID, _ body) error {
	if err := s.compute.ForceDelete(r.Context(), id); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

// restore is for servers that were deleted and are kept for a while; here none are.
func (s *server) restore(w http.ResponseWriter, r *http.Request, id resource.ID, _ body) error {
	_, srv, err := s.compute.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return fault.Errorf(fault.Conflict, "Cannot 'restore' instance %s while it is in vm_state %s", id, vmStates[srv.Stage()])
}

func (s *server) lock(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	if err := s.compute.LockServer(r.Context(), id, b.text("locked_reason")); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

func (s *server) unlock(w http.ResponseWriter, r *http.Request, id resource.ID, _ body) error {
	if err := s.compute.Unlock(r.Context(), id); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

func (s *server) resetState(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	if err := s.compute.Reset(r.Context(), id, b.text("state") == "error"); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

func (s *server) crashDump(w http.ResponseWriter, r *http.Request, id resource.ID, _ body) error {
	if _, _, err := s.compute.Get(r.Context(), id); err != nil {
		return err
	}
	return fault.Errorf(fault.Invalid, "The driver of the server's host cannot make a guest dump its memory.")
}

func (s *server) addSecurityGroup(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	if err := s.compute.AddSecurityGroup(r.Context(), id, b.text("name")); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

func (s *server) removeSecurityGroup(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	if err := s.compute.RemoveSecurityGroup(r.Context(), id, b.text("name")); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

func (s *server) rebuild(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	re := compute.Rebuild{ImageID: b.id("imageRef"), Name: b.pointer("name"), Description: b.pointer("description"),
		Hostname: b.pointer("hostname"), AccessIPv4: b.addressPointer("accessIPv4"), AccessIPv6: b.addressPointer("accessIPv6"), AdminPassword: b.text("adminPass")}
	if re.AdminPassword == "" {
		re.AdminPassword = newPassword()
	}
	if b.has("metadata") {
		re.Metadata = b.pairs("metadata")
	}
	if b.has("key_name") {
		var key *string
		if name := b.text("key_name"); name != "" {
			key = &name
		}
		re.KeyName = &key
	}
	if b.has("user_data") {
		data, err := decodeBase64(b.text("user_data"))
		if err != nil {
			return wrong("user_data", nil, "It is not a 'base64'")
		}
		re.UserData = &data
	}
	if b.has("trusted_image_certificates") {
		trusted := b.texts("trusted_image_certificates")
		re.Trusted = &trusted
	}
	if b.has("OS-DCF:diskConfig") {
		manual := b.text("OS-DCF:diskConfig") == "MANUAL"
		re.ManualDisk = &manual
	}
	var err error
	if re.Files, err = filesOf(b.list("personality")); err != nil {
		return err
	}
	srv, err := s.compute.Rebuild(r.Context(), id, re)
	if err != nil {
		return badImage(err)
	}
	tx, err := s.compute.State.View(r.Context())
	if err != nil {
		return err
	}
	w.Header().Set("Location", s.links(r, "servers/"+id.String())[0]["href"])
	return s.writeServer(w, r, http.StatusAccepted, tx, srv, reformed, func(v *viewer) { v.str("adminPass", re.AdminPassword) })
}

// badImage turns the fault for an image that is not there into the one that Nova gives here.
func badImage(err error) error {
	if f := fault.From(err); f != nil && f.Kind == fault.NotFound && f.Code != "server-not-found" {
		return fault.Errorf(fault.Invalid, "Cannot find image for rebuild")
	}
	return err
}

var updateBody = object(
	may("name", name), may("OS-DCF:diskConfig", oneOf("AUTO", "MANUAL")), may("accessIPv4", accessV4), may("accessIPv6", accessV6),
	since(19, may("description", orNull(text(0, 255)))),
	since(90, may("hostname", guestName)),
)

func (s *server) updateServer(w http.ResponseWriter, r *http.Request) error {
	b, err := wrapped(r, "server", updateBody)
	if err != nil {
		return err
	}
	id, err := serverID(r)
	if err != nil {
		return err
	}
	e := compute.Edit{Name: b.pointer("name"), Description: b.pointer("description"), Hostname: b.pointer("hostname"),
		AccessIPv4: b.addressPointer("accessIPv4"), AccessIPv6: b.addressPointer("accessIPv6")}
	if b.has("OS-DCF:diskConfig") {
		manual := b.text("OS-DCF:diskConfig") == "MANUAL"
		e.ManualDisk = &manual
	}
	srv, err := s.compute.Update(r.Context(), id, e)
	if err != nil {
		return err
	}
	tx, err := s.compute.State.View(r.Context())
	if err != nil {
		return err
	}
	return s.writeServer(w, r, http.StatusOK, tx, srv, updated, nil)
}

// consoleOutput answers the end of what the guest wrote; length is in lines.
func (s *server) consoleOutput(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	lines := b.int("length", -1)
	const most = 100 << 10
	log, err := s.compute.ConsoleLog(r.Context(), id, most)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]string{"output": lastLines(log, lines)})
}

// lastLines cuts a log to its last lines; all of it when n is negative. What follows the last end of line is a line,
// even when it is empty, as Nova counts. What is no valid text becomes what JSON can carry.
func lastLines(log []byte, n int) string {
	if n >= 0 {
		from := len(log) + 1 // where the line begins; one past the end of line that is before it
		for ; n > 0 && from > 0; n-- {
			from = bytes.LastIndexByte(log[:from-1], '\n') + 1
		}
		log = log[min(from, len(log)):]
	}
	clean := make([]rune, 0, len(log))
	for _, c := range string(log) {
		if c >= ' ' || c == '\n' || c == '\t' || c == '\r' || c == 0x1b {
			clean = append(clean, c)
		}
	}
	return string(clean)
}
