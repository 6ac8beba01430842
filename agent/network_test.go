package agent

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/network"
)

// TestMetadataIsForPortsOfTheGuest: a port that merely names a guest is not told what the guest is.
func TestMetadataIsForPortsOfTheGuest(t *testing.T) {
	newID := func() resource.ID { return resource.NewID(time.Now(), nil) }
	server, project, plugged, other, foreign := newID(), newID(), newID(), newID(), newID()
	m := &machine{has: map[resource.ID]string{}}
	a, err := New(nil, time.Now(), m.handler("attachment"), m.handler("guest"))
	if err != nil {
		t.Fatal(err)
	}
	want := func(kind string, id resource.ID, body any) host.Item {
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		return host.Item{Key: host.Key{Kind: kind, ID: id}, Body: text}
	}
	a.Deliver(host.Delivery{Full: true, Items: []host.Item{
		want("guest", server, compute.Guest{ID: server, ProjectID: project, NICs: []compute.NIC{{PortID: plugged}, {PortID: foreign}}}),
		want("attachment", plugged, network.Attachment{ID: plugged, ProjectID: project, ServerID: server}),
		want("attachment", other, network.Attachment{ID: other, ProjectID: project, ServerID: server}),
		want("attachment", foreign, network.Attachment{ID: foreign, ProjectID: newID(), ServerID: server}),
	}}, time.Now())
	for port, known := range map[resource.ID]bool{plugged: true, other: false, foreign: false} {
		if g, ok := a.GuestOf(port); ok != known || ok && g.ID != server {
			t.Errorf("port %s: %v %v, want %v", port, ok, g.ID, known)
		}
	}
}
