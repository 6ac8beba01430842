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

// Cancel records that an operation is no longer wanted. Whoever carries it out ends it at its next
// step; until then it runs. To cancel twice is to cancel once. What has ended cannot be cancelled,
// nor can the end of a thing: it is accepted in every state, and has no way back.
func Cancel(ctx context.Context, s *state.State, id resource.ID) (*Operation, error) {
	return state.Do(ctx, s, func(tx *state.Tx) (*Operation, error) {
		o, err := Get(tx, id)
		if err != nil {
			return nil, err
		}
		if err := identity.Allow(ctx, "operation.cancel", o.Meta); err != nil {
			return nil, err
		}
		switch {
		case o.Outcome != Running:
			return nil, fault.Errorf(fault.Conflict, "The operation has ended already: %s.", o.Outcome).WithCode("operation-ended")
		case o.Verb == DeleteVerb:
			return nil, fault.Errorf(fault.Conflict, "A deletion cannot be cancelled.").WithCode("operation-not-cancellable")
		case o.Cancelled:
			return o, nil
		}
		o.Cancelled = true
		return o, operations.Put(tx, o)
	})
}
