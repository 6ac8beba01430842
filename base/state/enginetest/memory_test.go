package enginetest_test

import (
	"testing"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/state/enginetest"
)

type memory struct{ *state.Memory }

func (m memory) Open(*testing.T) state.Engine       { return m.Memory }
func (m memory) Restart(*testing.T)                 {}
func (m memory) Fault(hook func(step string) error) { m.Memory.Fault = hook }
func (m memory) Steps() []string                    { return []string{"before", "after"} }
func (m memory) Compact(*testing.T)                 { m.Memory.Compact() }

func TestMemory(t *testing.T) {
	enginetest.Test(t, func(*testing.T) enginetest.Store { return memory{state.NewMemory(0)} })
}
