package qemu

import (
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

// An agent may die while it has the hypervisor take up disks that were kept, of a guest that stays paused: the next one goes on.
func TestAgentsDieAsTheyTakeDisksUp(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"disks exported", "disks taken up"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			r := &road{TB: t, wire: &wire{}, a: newHost(t), b: newHost(t)}
			r.b.image.ID = r.a.image.ID
			r.a.disks = t.TempDir()
			r.b.disks = r.a.disks
			r.from = r.join(t, r.a, r.a.open(t))
			r.a.storage = r.from.storage.id
			r.to = r.join(t, r.b, r.b.open(t))
			want := r.a.guest(t)
			ensure(t, r.from, want, compute.On)
			obeys(t, r.from, want.ID)
			want.Power = compute.Paused
			first := ensure(t, r.from, want, compute.Paused)

			arriving := r.there(want, 1, true)
			arriving.Epoch, arriving.Kept, arriving.Arrive.Kept = 2, true, true
			want.Leave = &compute.Leave{Move: 1, Where: r.receive(arriving).Where, Live: true, Kept: true}
			for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				there := r.receive(arriving)
				_, here := r.send(want)
				if there.Done && here.Done {
					break
				}
				if there.Trouble != "" || here.Trouble != "" || time.Now().After(deadline) {
					t.Fatalf("it does not go: %+v, %+v", here, there)
				}
			}
			arriving.Arrive = nil
			died := false
			func() {
				defer func() { died = recover() == step }()
				r.to.step = func(name string) {
					if name == step {
						panic(name)
					}
				}
				ensure(t, r.to, arriving, compute.Paused)
			}()
			if !died {
				t.Fatal("it did not die")
			}
			r.to = r.join(t, r.b, r.b.reopen(t, r.to).(*Driver))
			if got := ensure(t, r.to, arriving, compute.Paused); !got.StartedAt.Equal(first.StartedAt) {
				t.Error("it was started again")
			}
			if err := r.from.Remove(t.Context(), want.ID); err != nil {
				t.Error(err)
			}
			arriving.Power = compute.Suspended // its disks are let go of then, which takes that they were taken up
			ensure(t, r.to, arriving, compute.Suspended)
			arriving.Power = compute.On
			ensure(t, r.to, arriving, compute.On)
		})
	}
}
