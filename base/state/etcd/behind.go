package etcd

import (
	"context"
	"log/slog"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
)

// A member that was sent the whole state, for it was new or had been away, takes itself for as far behind as the state is old until
// it has applied one entry of the log after it (etcd 3.7.3: applySnapshot does not set the applied index, which
// processInternalRaftRequestOnce compares). Until then it refuses its own writes with "too many requests", its first one,
// by which it becomes ready, among them; and where nobody else writes that is for ever. A change of membership is
// neither refused nor counted: one that changes nothing is the entry that it waits for.
const (
	farBehind   = 5000 // entries: etcd's maxGapBetweenApplyAndCommitIndex
	behindAfter = 10   // ticks without any progress: a member that is really behind applies entries meanwhile
)

// catchUp has a member that waits for an entry make one, until ctx ends.
func (s *server) catchUp(ctx context.Context, url string) {
	tick := time.NewTicker(memberTick)
	defer tick.Stop()
	var last uint64
	for still := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		applied, committed := s.etcd.Server.AppliedIndex(), s.etcd.Server.CommittedIndex()
		if applied != last || committed <= applied+farBehind {
			still, last = 0, applied
			continue
		}
		if still++; still < behindAfter {
			continue
		}
		still = 0
		ask, cancel := context.WithTimeout(ctx, askWithin)
		_, err := s.etcd.Server.UpdateMember(ask, membership.Member{ID: s.etcd.Server.MemberID(),
			RaftAttributes: membership.RaftAttributes{PeerURLs: []string{url}}}) // nothing else of a member is changed so
		cancel()
		if err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "a member waits for an entry of the log and cannot make one", "applied", applied, "committed", committed, "err", err)
		}
	}
}
