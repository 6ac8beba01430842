package identity

import (
	"iter"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// What follows is for the native API, which shows every kind in the same way: the tables to look at, who may ask for
// such things at all, and which of them are somebody's own. Secrets are tagged so in the types.

var _ = Rules(map[string]Rule{
	"project.get": Reader, "user.get": Anyone, "group.get": Anyone, "assignment.get": Anyone, "role.get": Admin,
})

// Projects gives the native API a look at every project and domain.
func Projects() *state.Table[Project] { return projects }

// Users gives it a look at every user.
func Users() *state.Table[User] { return users }

// Groups gives it a look at every group.
func Groups() *state.Table[Group] { return groups }

// Roles gives it a look at every role.
func Roles() *state.Table[Role] { return roles }

// Assignments gives it a look at every assignment of a role.
func Assignments() *state.Table[Assignment] { return assignments }

// InGroup reports whether a user is in a group.
func InGroup(tx *state.Tx, user, group resource.ID) bool {
	for range memberships.Peek(tx, "pair", state.Range{Prefix: state.KeyOf(user, group)}) {
		return true
	}
	return false
}

// GroupsOf gives the groups that a user is in. They are shared: look, do not touch.
func GroupsOf(tx *state.Tx, user resource.ID) iter.Seq[*Group] {
	return func(yield func(*Group) bool) {
		for m := range memberships.Peek(tx, "user", state.Range{Prefix: state.KeyOf(user)}) {
			if g, ok := groups.PeekOne(tx, m.GroupID); ok && !yield(g) {
				return
			}
		}
	}
}
