// Package network keeps the tenants' networks: networks, subnets, ports, routers, floating
// addresses, security groups, who shares what, and what each host is to make of it all.
// How packets are carried, filtered and answered is a driver's business; how requests are
// spelled is a dialect's.
//
// Each noun has a file with its type, table, rules and hooks. A Collection gives all nouns
// the same verbs. What other domains do inside their own transactions stands beside the
// noun as plain functions on a Tx: AddPort, BindPort, ReleasePorts, …
package network
