//go:build tools

// Package peers names the programs that are built, so that "go mod tidy" keeps what they need.
package peers

import (
	_ "github.com/fatedier/frp/cmd/frpc"
	_ "github.com/fatedier/frp/cmd/frps"
	_ "github.com/jpillora/chisel"
)
