package redfish

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/core/host"
)

// A controller is a machine's management controller.
type controller struct {
	mu     sync.Mutex
	power  string // guarded by mu
	asked  []string
	slow   int // how often it says On although it is to be off
	target string
	types  []string
}

func (c *controller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if user, password, _ := r.BasicAuth(); user != "u" || password != "p" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.Method == http.MethodPost {
		var body map[string]string
		json.NewDecoder(r.Body).Decode(&body)
		c.asked = append(c.asked, r.URL.Path+" "+body["ResetType"])
		c.power = "Off"
		w.WriteHeader(http.StatusNoContent)
		return
	}
	power := c.power
	if power == "Off" && c.slow > 0 {
		c.slow--
		power = "PoweringOff"
	}
	fmt.Fprintf(w, `{"PowerState":%q,"Actions":{"#ComputerSystem.Reset":{"target":%q,"ResetType@Redfish.AllowableValues":%s}}}`, power, c.target, mustJSON(c.types))
}

func mustJSON(v any) string { b, _ := json.Marshal(v); return string(b) }

func TestOff(t *testing.T) {
	for name, test := range map[string]struct {
		bmc      *controller
		password string
		wrong    bool // fingerprint
		asked    int
		says     string // the error
	}{
		"it is switched off":                {bmc: &controller{power: "On", slow: 2}, asked: 1},
		"it is off already":                 {bmc: &controller{power: "Off"}},
		"where it says":                     {bmc: &controller{power: "On", target: "/redfish/v1/Systems/1/Actions/Oem"}, asked: 1},
		"its certificate is another":        {bmc: &controller{power: "On"}, wrong: true, says: "fingerprint"},
		"the password is wrong":             {bmc: &controller{power: "On"}, password: "x", says: "401"},
		"it cannot":                         {bmc: &controller{power: "On", types: []string{"GracefulShutdown"}}, says: "it cannot"},
		"it sends us elsewhere":             {bmc: &controller{power: "On", target: "https://elsewhere.example/x"}, says: "elsewhere"},
		"it is no system":                   {bmc: &controller{}, says: "no ComputerSystem"},
		"it never is off, whatever it says": {bmc: &controller{power: "On", slow: 1 << 30}, asked: 1, says: "deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewTLSServer(test.bmc)
			defer s.Close()
			sum := sha256.Sum256(s.Certificate().Raw)
			h := &host.Host{Fencing: host.Fencing{URL: s.URL + "/redfish/v1/Systems/1", Username: "u", Password: "p", Fingerprint: hex.EncodeToString(sum[:])}}
			if test.password != "" {
				h.Fencing.Password = test.password
			}
			if test.wrong {
				h.Fencing.Fingerprint = strings.Repeat("0", 64)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience(test.asked, test.says))
			defer cancel()
			err := (&Fencer{Every: time.Millisecond}).Off(ctx, h)
			if (err != nil) != (test.says != "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("it says %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "p@") {
				t.Error("the password is told")
			}
			test.bmc.mu.Lock()
			defer test.bmc.mu.Unlock()
			if len(test.bmc.asked) != test.asked || test.asked > 0 && !strings.HasSuffix(test.bmc.asked[0], " ForceOff") {
				t.Errorf("it was asked %q", test.bmc.asked)
			}
		})
	}
	if err := (&Fencer{}).Off(t.Context(), &host.Host{Fencing: host.Fencing{URL: "https://127.0.0.1:1/x"}}); err == nil {
		t.Error("nobody answers, and it is off")
	}
}

// patience is short for what is to take too long.
func patience(asked int, says string) time.Duration {
	if asked > 0 && says != "" {
		return time.Second
	}
	return time.Minute
}
