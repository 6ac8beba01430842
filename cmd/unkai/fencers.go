package main

import (
	"path/filepath"

	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/driver/fenceexec"
	"github.com/unkai-cloud/unkai/driver/redfish"
)

// fenceDir is where, in a controller's directory, the programs are that switch machines off.
const fenceDir = "fence"

// fencers are all ways to make sure that a machine is off.
func fencers(dir string) map[string]host.Fencer {
	return map[string]host.Fencer{
		"exec":    &fenceexec.Fencer{Dir: filepath.Join(dir, fenceDir)},
		"redfish": &redfish.Fencer{},
	}
}
