package host

import (
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
)

// overdue is for how long what goes by itself may be there still when its time is over: a controller may just have begun.
const overdue = 5 * time.Minute

// Audit says where what is known of machines that join does not hold: each newcomer, and each token, has its end, and goes then; nobody is new who
// is a host already; and a token makes a machine of one host that is there, or of a new one.
func Audit(tx *state.Tx) (wrong []string) {
	find := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	now := tx.Now()
	for n := range newcomers.Peek(tx, "", state.Range{}) {
		switch {
		case hosts.Has(tx, n.ID):
			find("newcomer %s is a host already", n.ID)
		case n.CreatedAt.IsZero():
			find("newcomer %s has no end", n.ID)
		case now.Sub(n.Ends()) > overdue:
			find("newcomer %s is there, and was none of the cloud's any more at %s", n.ID, n.Ends().UTC().Format(time.RFC3339))
		}
	}
	for t := range joinTokens.Peek(tx, "", state.Range{}) {
		switch {
		case t.Expires.IsZero() || len(t.Hash) == 0:
			find("join token %s has no end, or is nobody's to show", t.ID)
		case now.Sub(t.Expires) > overdue:
			find("join token %s is there, and was worth nothing any more at %s", t.ID, t.Expires.UTC().Format(time.RFC3339))
		case !t.As.IsZero() && !hosts.Has(tx, t.As):
			find("join token %s is to join as host %s, which is not there", t.ID, t.As)
		case !t.As.IsZero() && t.Only != ForHosts:
			find("join token %s is to join as host %s, and is not for hosts", t.ID, t.As)
		}
	}
	return wrong
}
