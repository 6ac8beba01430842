// Package etcd keeps a state.State durable in etcd: a server of its own inside this
// process, or one that runs elsewhere.
//
// Below a prefix, "/unkai/" unless told otherwise, lie
//
//	o/<kind>/<16 bytes of ID>  one object: "<version> <tx> <JSON>"
//	head                       the newest batch: "<revision, 20 digits> <JSON>"
//	term                       who writes: "<term> <attempt>"
//
// A commit is one etcd transaction that writes the batch's objects and the head, under the
// conditions that the term key is as its writer left it and that the head is at the batch's base.
// etcd's own history of the head and the objects is the transaction log that Watch reads.
//
// The server inside the process listens nowhere: no port, no socket.
package etcd
