package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"text/tabwriter"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// moveRoutes are the moves' on the control socket.
func (c *cloud) moveRoutes(mux *http.ServeMux) {
	on := func(pattern string, do func(ctx context.Context, id resource.ID, r compute.Relocation) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			var asked compute.Relocation
			id, err := resource.ParseID(r.PathValue("id"))
			if err != nil {
				http.Error(w, "a server is named by its ID", http.StatusBadRequest)
				return
			}
			if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&asked); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			answer, err := do(identity.Internal(r.Context()), id, asked)
			answerControl(w, answer, err)
		})
	}
	on("POST /servers/{id}/move", func(ctx context.Context, id resource.ID, r compute.Relocation) (any, error) {
		return c.compute.Relocate(ctx, id, r)
	})
	on("POST /servers/{id}/move/plan", func(ctx context.Context, id resource.ID, r compute.Relocation) (any, error) {
		return c.compute.ForecastMove(ctx, id, r)
	})
	mux.HandleFunc("GET /operations/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := resource.ParseID(r.PathValue("id"))
		var op *operation.Operation
		if err == nil {
			op, err = operation.Get(c.state.Latest(), id)
		}
		if fault.Is(err, fault.NotFound) {
			err = fmt.Errorf("the operation is gone: was the server deleted?")
		}
		answerControl(w, op, err)
	})
}

type moveCommand struct {
	dataOption
	Server string `arg:"" help:"The server's ID."`
	To     string `help:"The host's name; whichever suits when empty."`
	Off    bool   `help:"Switch it off for the way, also if it runs; its owner then confirms the move."`
	Plan   bool   `help:"Only tell what the move would take."`
	JSON   bool   `help:"With --plan: print JSON."`
	Wait   bool   `help:"Return when it is over; fail if it stays."`
}

// Run moves a server, or tells what that would take.
func (m *moveCommand) Run(ctx context.Context) error {
	text, err := json.Marshal(compute.Relocation{To: m.To, Off: m.Off})
	if err != nil {
		return err
	}
	path := "/servers/" + url.PathEscape(m.Server) + "/move"
	if m.Plan {
		var f compute.Forecast
		if err := askWith(ctx, m.Data, http.MethodPost, path+"/plan", text, &f); err != nil {
			return err
		}
		if m.JSON {
			return printJSON(f)
		}
		return printForecast(os.Stdout, &f)
	}
	var op operation.Operation
	if err := askWith(ctx, m.Data, http.MethodPost, path, text, &op); err != nil {
		return err
	}
	fmt.Printf("operation %s\n", op.ID)
	for m.Wait {
		if err := ask(ctx, m.Data, http.MethodGet, "/operations/"+op.ID.String(), &op); err != nil {
			return err
		}
		switch op.Outcome {
		case operation.Running:
		case operation.Succeeded:
			return nil
		default:
			return fmt.Errorf("it was not moved: %s", op.Message)
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// inWords are a forecast's outcomes for people.
var inWords = map[compute.Outcome]string{
	compute.Surely: "ends by itself", compute.Probably: "should end by itself", compute.IfSlowed: "ends by itself once the guest is slowed down",
	compute.Hardly: "will hardly end by itself", compute.Never: "does not end by itself: it has to be hurried, or the guest to write less", compute.Unseen: "may end by itself: how fast it writes is not known",
}

func printForecast(out io.Writer, f *compute.Forecast) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	b, w := &f.Burden, &f.Wire
	way := "off"
	if f.Live {
		way = "live"
	}
	fmt.Fprintf(t, "%s\t%s to %s\n", way, f.From, f.To)
	if f.Live {
		fmt.Fprintf(t, "memory\t%s of %s in use", sizeText(b.Used), sizeText(b.Memory))
		if b.Seen {
			fmt.Fprintf(t, ", %s/s of it written anew", sizeText(b.Dirty))
		}
		fmt.Fprintln(t)
	}
	fmt.Fprintf(t, "disks\t")
	if f.Kept {
		fmt.Fprint(t, "stay where they are")
	} else {
		fmt.Fprint(t, sizeText(b.Disk))
	}
	if b.Seen && f.Live && !f.Kept {
		fmt.Fprintf(t, ", %s/s written", sizeText(b.DiskWrites))
	}
	fmt.Fprintf(t, "\nwire\t%s/s (%s to %s), %s\n", sizeText(w.Expected), sizeText(w.Least), sizeText(w.Most), w.Basis)
	fmt.Fprintf(t, "takes\t%s\n", spanText(f.Seconds, 1, "s"))
	if f.Live {
		fmt.Fprintf(t, "pause\t%s; hurried %s\n", spanText(f.PauseMs, 1000, "s"), spanText(f.HurriedMs, 1000, "s"))
		fmt.Fprintf(t, "outcome\t%s", inWords[f.Outcome])
		if f.Slowed > 0 {
			fmt.Fprintf(t, ", by %d %%", f.Slowed)
		}
		fmt.Fprintln(t)
	}
	for _, doubt := range f.Doubts {
		fmt.Fprintf(t, "\t%s\n", doubt)
	}
	return t.Flush()
}

// spanText prints what is expected, and between what it should lie.
func spanText(r compute.Range, per float64, unit string) string {
	end := func(n float64) string {
		if n == 0 {
			return "no end known"
		}
		return fmt.Sprintf("%.1f %s", n/per, unit)
	}
	return fmt.Sprintf("%s (%.1f %s to %s)", end(r.Expected), r.Least/per, unit, end(r.Most))
}

// sizeText prints bytes.
func sizeText(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%.0f GiB", float64(n)/(1<<30))
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.0f KiB", float64(n)/(1<<10))
}
