package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/alert"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/driver/smtp"
	"github.com/unkai-cloud/unkai/driver/webhook"
)

// alertSenders are all ways in which operators are told.
var alertSenders = map[string]alert.Sender{
	"mail":    &smtp.Sender{},
	"webhook": &webhook.Sender{},
}

// lookEvery is how often the rules of alerts are looked at.
const lookEvery = 15 * time.Second

// ledEvery is how often a controller looks whether any leads.
const ledEvery = 5 * time.Second

// keepAlerts raises alerts and tells of them until ctx ends. addresses are where this controller listens.
func (c *cloud) keepAlerts(ctx context.Context, addresses ...string) {
	k := c.keeper(addresses[0])
	k.Facts = func() alert.Facts { return c.facts(ctx) }
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { c.shown.keep(ctx, addresses) })
	k.Run(identity.Internal(ctx), lookEvery)
}

func (c *cloud) keeper(name string) *alert.Keeper {
	return &alert.Keeper{State: c.state, Senders: alertSenders, Cloud: name}
}

// A shownTarget is a target without its secrets.
type shownTarget struct {
	Name, Kind string
	Where      string
}

func shownTargets(tx *state.Tx) []shownTarget {
	list := []shownTarget{}
	for _, t := range alert.Targets(tx) {
		where := strings.Join(t.To, ", ") + " by " + t.Server
		if at, err := url.Parse(t.URL); err == nil && t.Kind == "webhook" {
			where = at.Scheme + "://" + at.Host + "/…" // a key may be in the rest
		}
		list = append(list, shownTarget{t.Name, t.Kind, where})
	}
	return list
}

// An openAlert is one that holds, as status and `unkai alert list` show it.
type openAlert struct {
	Rule, Subject, Text, Severity string
	Since                         time.Time
	Trouble                       string `json:",omitempty"` // why somebody was not told of it
}

// openAlerts are those in the state, and what this controller has told by itself.
func (c *cloud) openAlerts(tx *state.Tx) []openAlert {
	list := []openAlert{}
	all := alert.Opened(tx)
	if c.cluster != nil {
		if a := c.cluster.lookout.Opened(); a != nil {
			all = append([]*alert.Alert{a}, all...)
		}
	}
	for _, a := range all {
		o := openAlert{Rule: a.Name, Subject: a.Subject, Text: a.Text, Severity: string(a.Severity), Since: a.CreatedAt}
		for _, told := range a.Told {
			if told.Trouble != "" {
				o.Trouble = told.Trouble
			}
		}
		list = append(list, o)
	}
	return list
}

// An alertList is what `unkai alert list` shows.
type alertList struct {
	Open    []openAlert
	Targets []shownTarget
}

// alertRoutes are the alerts' on the control socket.
func (c *cloud) alertRoutes(mux *http.ServeMux, name string) {
	service := &alert.Service{State: c.state}
	mux.HandleFunc("GET /alerts", func(w http.ResponseWriter, r *http.Request) {
		tx := c.state.Latest()
		answerControl(w, alertList{c.openAlerts(tx), shownTargets(tx)}, nil)
	})
	mux.HandleFunc("POST /alert-targets", func(w http.ResponseWriter, r *http.Request) {
		var t alert.Target
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&t)
		if err == nil {
			t.Meta = resource.Meta{Name: t.Name}
			err = service.Add(identity.Internal(r.Context()), t)
		}
		answerControl(w, t.Name, err)
	})
	mux.HandleFunc("DELETE /alert-targets/{name}", func(w http.ResponseWriter, r *http.Request) {
		answerControl(w, "removed", service.Remove(identity.Internal(r.Context()), r.PathValue("name")))
	})
	mux.HandleFunc("POST /alert-targets/{name}/test", func(w http.ResponseWriter, r *http.Request) {
		answerControl(w, "told", c.keeper(name).Test(identity.Internal(r.Context()), r.PathValue("name")))
	})
}

// printAlerts adds to what `unkai status` shows.
func printAlerts(t *tabwriter.Writer, alerts []openAlert) {
	for i, a := range alerts {
		if i == 0 {
			fmt.Fprintln(t, "\nALERT\tABOUT\tSINCE\tWHAT")
		}
		text := a.Text
		if a.Trouble != "" {
			text += " (not told to everybody: " + a.Trouble + ")"
		}
		fmt.Fprintf(t, "%s %s\t%s\t%s\t%s\n", a.Severity, a.Rule, a.Subject, a.Since.Format(time.RFC3339), text)
	}
}

type alertCommand struct {
	List   alertListCommand   `cmd:"" help:"Show what holds now, and who is told."`
	Add    alertAddCommand    `cmd:"" help:"Tell one more webhook or mailbox."`
	Remove alertRemoveCommand `cmd:"" help:"Tell one no more."`
	Test   alertTestCommand   `cmd:"" help:"Tell one that nothing is wrong, now, to see that it arrives."`
}

type alertListCommand struct {
	dataOption
	JSON bool `help:"Print JSON."`
}

// Run shows alerts and targets.
func (l *alertListCommand) Run(ctx context.Context) error {
	var list alertList
	if err := ask(ctx, l.Data, http.MethodGet, "/alerts", &list); err != nil {
		return err
	}
	if l.JSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(list)
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%d alerts, %d targets\n", len(list.Open), len(list.Targets))
	printAlerts(t, list.Open)
	for i, target := range list.Targets {
		if i == 0 {
			fmt.Fprintln(t, "\nTARGET\tKIND\tWHERE")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", target.Name, target.Kind, target.Where)
	}
	return t.Flush()
}

type alertAddCommand struct {
	Webhook alertAddWebhook `cmd:"" help:"Post to an address."`
	Mail    alertAddMail    `cmd:"" help:"Send e-mail."`
}

type alertAddWebhook struct {
	dataOption
	Name       string `arg:"" help:"What to call it."`
	URL        string `arg:"" help:"Where to post."`
	SecretFile string `help:"A file with the secret that signs what is posted, at least 16 characters. One is made, and printed once, when none is given." type:"existingfile"`
}

// Help is what `unkai alert add webhook --help` says beside the options.
func (alertAddWebhook) Help() string {
	return `Each alert is posted as JSON when it is raised and when it is resolved: id, event (raised, resolved, or test), rule, subject, title, text,
severity, raised_at, resolved_at, cloud. Any answer of 2xx is a yes; otherwise it is posted again, later and later, an hour apart at most. One
may come twice: id and event tell. The header

  Unkai-Signature: t=UNIX,v1=HEX

holds the HMAC-SHA256, under the secret, of the time, a dot, and the body. No redirect is followed.`
}

// Run adds a webhook.
func (a *alertAddWebhook) Run(ctx context.Context) error {
	secret, made := password()+password()[:16], true
	if a.SecretFile != "" {
		text, err := os.ReadFile(a.SecretFile)
		if err != nil {
			return err
		}
		secret, made = strings.TrimSpace(string(text)), false
	}
	if err := addTarget(ctx, a.Data, alert.Target{Meta: resource.Meta{Name: a.Name}, Kind: "webhook", URL: a.URL, Secret: secret}); err != nil {
		return err
	}
	if made {
		fmt.Println("its secret, which is not shown again:")
		fmt.Println(secret)
	}
	return nil
}

type alertAddMail struct {
	dataOption
	Name         string   `arg:"" help:"What to call it."`
	To           []string `arg:"" help:"Addresses to mail to."`
	Server       string   `required:"" help:"The mail server: smtp://host:587 (STARTTLS, which it must offer unless it is this machine), or smtps://host:465."`
	From         string   `required:"" help:"The sender's address."`
	Username     string   `help:"For a server that wants a login."`
	PasswordFile string   `help:"A file with the password." type:"existingfile"`
}

// Run adds a mailbox.
func (a *alertAddMail) Run(ctx context.Context) error {
	t := alert.Target{Meta: resource.Meta{Name: a.Name}, Kind: "mail", Server: a.Server, From: a.From, To: a.To, Username: a.Username}
	if a.PasswordFile != "" {
		text, err := os.ReadFile(a.PasswordFile)
		if err != nil {
			return err
		}
		t.Password = strings.TrimSpace(string(text))
	}
	return addTarget(ctx, a.Data, t)
}

func addTarget(ctx context.Context, dir string, t alert.Target) error {
	body, err := json.Marshal(t)
	if err != nil {
		return err
	}
	var name string
	if err := askWith(ctx, dir, http.MethodPost, "/alert-targets", body, &name); err != nil {
		return err
	}
	fmt.Printf("%s is told from now on; unkai alert test %s says whether it arrives\n", name, name)
	return nil
}

type alertRemoveCommand struct {
	dataOption
	Name string `arg:"" help:"The target."`
}

// Run removes a target.
func (a *alertRemoveCommand) Run(ctx context.Context) error {
	var done string
	return ask(ctx, a.Data, http.MethodDelete, "/alert-targets/"+url.PathEscape(a.Name), &done)
}

type alertTestCommand struct {
	dataOption
	Name string `arg:"" help:"The target."`
}

// Run tells a target that nothing is wrong.
func (a *alertTestCommand) Run(ctx context.Context) error {
	var done string
	if err := ask(ctx, a.Data, http.MethodPost, "/alert-targets/"+url.PathEscape(a.Name)+"/test", &done); err != nil {
		return err
	}
	fmt.Println(a.Name + " has taken it")
	return nil
}
