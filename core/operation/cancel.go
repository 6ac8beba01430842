package operation

import (
	"context"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

var _ = identity.Rules(map[string]identity.Rule{
	"operation.get": identity.Reader, "operation.cancel": identity.Member,
})

// A Canceller takes the wish of an operation back, in the same transaction: the target is then on
// its way to how it was, or gone. The operation is ended as Cancelled by whoever calls, unless the Canceller
// did so. A fault refuses: there is no way back from what the operation does, or the actor may not take it.
type Canceller func(ctx context.Context, tx *state.Tx, o *Operation) error

// A Service does with operations what users ask for.
type Service struct {
	State *state.State
	// Cancellers by target kind. An operation on any other kind cannot be cancelled.
	Cancellers map[string]Canceller
}

// Cancel ends an operation that is no longer wanted. What a host was already doing for it may come to
// be all the same; the host then undoes it. To cancel twice is to cancel once. What has ended otherwise
// cannot be cancelled, nor can the end of a thing: it is accepted in every state, and has no way back.
func (s *Service) Cancel(ctx context.Context, id resource.ID) (*Operation, error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (*Operation, error) {
		o, err := Get(tx, id)
		if err != nil {
			return nil, err
		}
		if err := identity.Allow(ctx, "operation.cancel", o.Meta); err != nil {
			return nil, err
		}
		cancel := s.Cancellers[o.TargetKind]
		switch {
		case o.Outcome == Cancelled:
			return o, nil
		case o.Outcome != Running:
			return nil, fault.Errorf(fault.Conflict, "The operation has ended already: %s.", o.Outcome).WithCode("operation-ended")
		case o.Verb == DeleteVerb:
			return nil, NotCancellable("A deletion cannot be cancelled.")
		case cancel == nil:
			return nil, NotCancellable("This operation cannot be cancelled.")
		}
		if err := cancel(ctx, tx, o); err != nil {
			return nil, err
		}
		if o, err = Get(tx, id); err != nil {
			return nil, err
		}
		return o, End(tx, o, Cancelled, "It was cancelled.")
	})
}

// NotCancellable is the fault for an operation from which there is no way back.
func NotCancellable(why string) error {
	return fault.Errorf(fault.Conflict, "%s", why).WithCode("operation-not-cancellable")
}
