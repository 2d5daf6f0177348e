// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import "golang.org/x/sys/unix"

// readFD is read(2), begun again where a signal has interrupted it. The Go runtime sends itself signals, and the kernel does not begin again by itself where a socket has a
// timeout (signal(7)).
func readFD(fd int, buf []byte) (n int, err error) {
	for {
		if n, err = unix.Read(fd, buf); err != unix.EINTR {
			return n, err
		}
	}
}

// writeFD is write(2) in the same way.
func writeFD(fd int, buf []byte) (n int, err error) {
	for {
		if n, err = unix.Write(fd, buf); err != unix.EINTR {
			return n, err
		}
	}
}
