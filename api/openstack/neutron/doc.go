// Package neutron speaks OpenStack's Networking API v2.0
// (https://docs.openstack.org/api-ref/network/v2/). Each resource has a file with its
// attributes, filters and shape; resource.go and the files that begin with its name give all of them
// the same verbs.
package neutron
