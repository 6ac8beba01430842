package host

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// An Away is that a host cannot reach the storage that it shares with others: a mount that hangs, as when its file server does not answer, or fails.
// The host lives on, and says so; what its guests write waits. One that shares none is never without it.
type Away struct {
	Since time.Time
	Why   string // in the host's words
}

// StorageKind is the kind of the report that tells why a host cannot reach its shared storage; "" when it can.
const StorageKind = "host-storage"

// storage takes such reports in. Whoever reports means itself.
func storage() Source {
	return Reports(StorageKind, func(tx *state.Tx, host, _ resource.ID, seen json.RawMessage) error {
		var why string
		if err := json.Unmarshal(seen, &why); err != nil {
			return fmt.Errorf("decode how the storage of host %s is: %w", host, err)
		}
		return KeepFromStorage(tx, host, why)
	})
}

// KeepFromStorage records why a host cannot reach its shared storage, or with "" that it can. One that is lost is not asked.
func KeepFromStorage(tx *state.Tx, id resource.ID, why string) error {
	if err := checkWord("trouble with its storage", why); err != nil {
		return err
	}
	h, ok := hosts.Find(tx, id)
	if !ok || !h.Up() || h.Away.Why == why || why != "" && h.Capacity.Storage == "" {
		return nil
	}
	switch {
	case why == "":
		h.Away = Away{}
	case h.Away.Why == "":
		h.Away = Away{tx.Now(), why}
	default:
		h.Away.Why = why // it hangs, or fails, since then all the same
	}
	return hosts.Put(tx, h)
}
