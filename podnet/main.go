// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// maxConf bounds the configuration in bytes. The largest there is, that of a GC,
// has about a hundred for each container of the node.
const maxConf = 8 << 20

var versions = version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")

// Main is the CNI plugin: it does what CNI_COMMAND says, with the configuration on
// the standard input, prints a result or an error as JSON on the standard output,
// and ends the process with code 0 or 1.
func Main() {
	if err := run(); err != nil {
		printError(err) // nothing is left to tell it to if that fails
		os.Exit(1)
	}
	os.Exit(0)
}

// asked is the configuration, as it came.
var asked []byte

// printError prints an error as the specification wants it, with the version of the request, which the library leaves out.
func printError(e *types.Error) {
	type request struct {
		CNIVersion string `json:"cniVersion"`
	}
	var r request
	if json.Unmarshal(asked, &r) != nil || r.CNIVersion == "" {
		r.CNIVersion = "1.1.0"
	}
	text, _ := json.MarshalIndent(struct {
		request
		*types.Error
	}{r, e}, "", "  ")
	_, _ = os.Stdout.Write(append(text, '\n'))
}

func run() *types.Error {
	if verb := os.Getenv("CNI_COMMAND"); verb != "VERSION" && verb != "" { // a person who starts it without is told what it is
		if err := limitStdin(); err != nil {
			return err
		}
		// The library refuses the node's own namespace also of a DEL, and when that is done. A path by way of a process (/proc/PID/ns/net) leads there when
		// the pod's has ended and its number is another one's.
		if verb == "DEL" {
			os.Setenv("CNI_NETNS_OVERRIDE", "true")
		}
	}
	funcs := skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}
	return skel.PluginMainFuncsWithError(funcs, versions, "Fairlead CNI plugin")
}

// limitStdin replaces the standard input by a copy of itself in memory, if that is
// not too large: the library that parses it would read without end.
func limitStdin() *types.Error {
	fail := func(err error) *types.Error {
		return types.NewError(types.ErrIOFailure, fmt.Sprintf("read network configuration: %v", err), "")
	}
	data, err := io.ReadAll(io.LimitReader(os.Stdin, maxConf+1))
	if err != nil {
		return fail(err)
	}
	if len(data) == 0 {
		return types.NewError(types.ErrDecodingFailure, "read network configuration: the standard input is empty", "")
	}
	if len(data) > maxConf {
		return types.NewError(types.ErrDecodingFailure, fmt.Sprintf("read network configuration: it is larger than %d bytes", maxConf), "")
	}
	asked = data
	fd, err := unix.MemfdCreate("conf", unix.MFD_CLOEXEC)
	if err != nil {
		return fail(err)
	}
	copied := os.NewFile(uintptr(fd), "conf")
	if _, err := copied.Write(data); err != nil {
		return fail(err)
	}
	if _, err := copied.Seek(0, io.SeekStart); err != nil {
		return fail(err)
	}
	os.Stdin = copied
	return nil
}
