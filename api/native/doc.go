// Package native speaks our own API, /v1: every kind of thing is read in one way (get, list,
// filter, sort, watch, as of any moment that is kept), and what no dialect has is here:
// operations, plans of several requests, why something was placed, hosts. It decides nothing:
// who may see a thing, and what may be done to it, the core says.
//
// What the API shows is derived from the core's types. The registry in kinds.go names the kinds; a
// shape turns one type into its JSON, its filters and its part of the description at /v1/openapi.json,
// so that the three cannot differ. Fields tagged secret:"true" are in none of them.
package native
