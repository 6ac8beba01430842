//go:build tools

// Package tools pins the programs that check the code, outside of the product's graph.
package tools

import _ "honnef.co/go/tools/cmd/staticcheck"
