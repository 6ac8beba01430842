// Package redfish makes sure that machines are off by their management controllers, as DMTF's Redfish describes them
// (DSP0266, and ComputerSystem of DSP0268).
package redfish

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/core/host"
)

// A Fencer switches machines off.
type Fencer struct {
	// Every is how often it is looked whether a machine is off by now; 2 s when 0.
	Every time.Duration
	// TLS is what certificates are checked with that no fingerprint is known of; nil: as the system does.
	TLS *tls.Config
}

const mostBody = 1 << 20

// system is what is read of a ComputerSystem.
type system struct {
	PowerState string
	Actions    struct {
		Reset struct {
			Target string   `json:"target"`
			Types  []string `json:"ResetType@Redfish.AllowableValues"`
		} `json:"#ComputerSystem.Reset"`
	}
}

// Off switches a machine off, and returns once its controller says that it is.
func (f *Fencer) Off(ctx context.Context, h *host.Host) error {
	at, err := url.Parse(h.Fencing.URL)
	if err != nil {
		return err
	}
	c := &conversation{at: at, fencing: &h.Fencing, client: &http.Client{Timeout: 30 * time.Second,
		// Credentials go nowhere but where the operator said.
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("it sends us elsewhere") },
		Transport: &http.Transport{TLSClientConfig: f.config(h.Fencing.Fingerprint), DisableKeepAlives: true,
			DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext, TLSHandshakeTimeout: 10 * time.Second}}}
	for asked := false; ; {
		var s system
		if err := c.do(ctx, http.MethodGet, at, nil, &s); err != nil {
			return fmt.Errorf("ask whether the machine is on: %w", err)
		}
		switch {
		case s.PowerState == "Off":
			return nil
		case s.PowerState == "":
			return errors.New("the address is no ComputerSystem: it has no PowerState")
		case !asked:
			if err := c.forceOff(ctx, &s); err != nil {
				return fmt.Errorf("switch the machine off: %w", err)
			}
			asked = true
		}
		select {
		case <-time.After(cmp.Or(f.Every, 2*time.Second)):
		case <-ctx.Done():
			return fmt.Errorf("the machine is %s, though it was to be off: %w", s.PowerState, ctx.Err())
		}
	}
}

// config trusts one certificate alone if its fingerprint is known.
func (f *Fencer) config(fingerprint string) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.TLS != nil {
		c = f.TLS.Clone()
	}
	if fingerprint == "" {
		return c
	}
	c.InsecureSkipVerify = true // the fingerprint says more
	c.VerifyConnection = func(s tls.ConnectionState) error {
		sum := sha256.Sum256(s.PeerCertificates[0].Raw)
		if is := hex.EncodeToString(sum[:]); is != fingerprint {
			return fmt.Errorf("its certificate has the fingerprint %s", is)
		}
		return nil
	}
	return c
}

type conversation struct {
	at      *url.URL
	fencing *host.Fencing
	client  *http.Client
}

func (c *conversation) forceOff(ctx context.Context, s *system) error {
	if types := s.Actions.Reset.Types; len(types) > 0 && !slices.Contains(types, "ForceOff") {
		return fmt.Errorf("it cannot: it knows only %q", types)
	}
	target := c.at.JoinPath("Actions", "ComputerSystem.Reset")
	if s.Actions.Reset.Target != "" {
		to, err := c.at.Parse(s.Actions.Reset.Target)
		if err != nil {
			return err
		}
		if to.Scheme != c.at.Scheme || to.Host != c.at.Host {
			return errors.New("it sends us elsewhere")
		}
		target = to
	}
	return c.do(ctx, http.MethodPost, target, map[string]string{"ResetType": "ForceOff"}, nil)
}

func (c *conversation) do(ctx context.Context, method string, at *url.URL, body, answer any) error {
	var in io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, at.String(), in)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("OData-Version", "4.0")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.fencing.Username != "" {
		req.SetBasicAuth(c.fencing.Username, c.fencing.Password)
	}
	res, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, mostBody))
	if err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("it answers %s", res.Status)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("read its answer: %w", err)
	}
	return nil
}
