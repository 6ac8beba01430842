package native

import (
	"net/http"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A relocation asks for a server on another host.
type relocation struct {
	To  string `json:"to"`  // the host's name; "" for whichever suits
	Off bool   `json:"off"` // it is switched off for the way, also if it runs
}

// A forecast is what a move would take.
type forecast struct {
	From      string   `json:"from"`
	To        string   `json:"to"`
	Live      bool     `json:"live"`
	Kept      bool     `json:"disks_stay"` // both hosts reach them where they are
	Burden    burden   `json:"burden"`
	Unknown   string   `json:"unknown"` // why the guest could not be looked at; the burden is then guessed from its shape
	Wire      speed    `json:"wire"`
	Seconds   bounds   `json:"seconds"`
	PauseMs   bounds   `json:"pause_ms"`
	Outcome   string   `json:"outcome"`        // "yes", "probably", "slowed", "unlikely", "no" or "unknown": whether it ends by itself
	Slowed    int      `json:"slowed_percent"` // by how much the guest's processors are held back at the last
	HurriedMs bounds   `json:"hurried_ms"`     // what the pause would be if somebody hurries it
	Doubts    []string `json:"doubts"`         // what all this rests on
}

type burden struct {
	Live       bool    `json:"live"`
	Memory     int64   `json:"memory_bytes"`
	Used       int64   `json:"memory_used_bytes"`
	Disk       int64   `json:"disk_bytes"`
	Course     string  `json:"course"` // of its memory: "" for rounds, "one-round", "standing"
	Seen       bool    `json:"seen"`   // how fast it writes
	Dirty      int64   `json:"memory_written_bytes_per_second"`
	DiskWrites int64   `json:"disk_written_bytes_per_second"`
	Seconds    float64 `json:"seen_seconds"`
	Pages      int     `json:"seen_pages"` // of its memory; 0 for all
}

type speed struct {
	Basis    string `json:"basis"` // "tried", "pair", "host", "declared" or "assumed"
	Moves    int    `json:"moves"`
	Least    int64  `json:"least_bytes_per_second"`
	Expected int64  `json:"expected_bytes_per_second"`
	Most     int64  `json:"most_bytes_per_second"`
}

// Bounds are what is expected, and between what it should lie. A most, or an expected, of 0: no end is known.
type bounds struct {
	Least    float64 `json:"least"`
	Expected float64 `json:"expected"`
	Most     float64 `json:"most"`
}

func forecastFrom(f *compute.Forecast) *forecast {
	if f == nil {
		return nil
	}
	b, w := &f.Burden, &f.Wire
	return &forecast{From: f.From, To: f.To, Live: f.Live, Kept: f.Kept, Unknown: f.Unknown,
		Burden:  burden{b.Live, b.Memory, b.Used, b.Disk, string(b.Course), b.Seen, b.Dirty, b.DiskWrites, b.Seconds, b.Pages},
		Wire:    speed{string(w.Basis), w.Moves, w.Least, w.Expected, w.Most},
		Seconds: bounds(f.Seconds), PauseMs: bounds(f.PauseMs), Outcome: string(f.Outcome), Slowed: f.Slowed, HurriedMs: bounds(f.HurriedMs), Doubts: f.Doubts}
}

// relocationOf reads which server is to go, and how.
func (s *Server) relocationOf(r *http.Request) (id resource.ID, asked relocation, err error) {
	if id, err = resource.ParseID(r.PathValue("id")); err != nil {
		return id, asked, missing(s.byName[compute.Servers().Kind()], r.PathValue("id"))
	}
	return id, asked, readJSON(r, &asked)
}

// unseen has one who may not know of the server told that there is none.
func (s *Server) unseen(id resource.ID, err error) error {
	if fault.Is(err, fault.NotFound) {
		return missing(s.byName[compute.Servers().Kind()], id)
	}
	return err
}

// relocate takes a server to another host.
func (s *Server) relocate(w http.ResponseWriter, r *http.Request) error {
	id, asked, err := s.relocationOf(r)
	if err != nil {
		return err
	}
	op, err := s.Compute.Relocate(r.Context(), id, compute.Relocation(asked))
	if err != nil {
		return s.unseen(id, err)
	}
	return s.writeChanged(w, r, http.StatusAccepted, s.byName[operation.Table().Kind()], op)
}

// planRelocation tells what that would take.
func (s *Server) planRelocation(w http.ResponseWriter, r *http.Request) error {
	id, asked, err := s.relocationOf(r)
	if err != nil {
		return err
	}
	f, err := s.Compute.ForecastMove(r.Context(), id, compute.Relocation(asked))
	if err != nil {
		return s.unseen(id, err)
	}
	s.write(w, r, http.StatusOK, forecastFrom(f))
	return nil
}

var (
	aboutRelocate = about{id: "moveServer", summary: "Take a server to another host: one that is in memory while it runs. Only for an admin.", tag: "servers", body: "Relocation",
		parameters: changing, answers: map[int]answer{202: {what: "The operation that moves it.", schema: "Operation"}, 200: planAnswer}, errors: []int{400, 403, 404, 409}}
	aboutPlanRelocation = about{id: "planServerMove", summary: "Tell what a move would take, and do nothing. A running guest is looked at for a second. Only for an admin.", tag: "servers", body: "Relocation",
		answers: map[int]answer{200: {what: "The forecast.", schema: "Forecast"}}, errors: []int{400, 403, 404, 409}}
)
