// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// lookedUp is what the stub resolver did.
type lookedUp struct {
	Lookups    int     `json:"lookups"` // counted
	All        int     `json:"all"`     // also those before counting
	Queries    int     `json:"queries"` // for all
	Seconds    float64 `json:"seconds"`
	Errors     int     `json:"errors"`
	FirstError string  `json:"firstError,omitempty"`
}

func (r lookedUp) perSecond() float64 { return float64(r.Lookups) / r.Seconds }

// lookup is the program in the client pod that looks up names outside the cluster as glibc does in a pod: a name with fewer than five dots is tried with
// each search domain before it is tried as it is; each try asks for both families at a time, from a new socket, and waits for both.
func lookup(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("lookup", flag.ContinueOnError)
	to := flags.String("to", "", "address of the server")
	search := flags.String("search", "default.svc.cluster.local,svc.cluster.local,cluster.local", "search domains, with commas")
	ndots := flags.Int("ndots", 5, "names with fewer dots are searched for first")
	first := flags.Int("first", 0, "number of the first name")
	names := flags.Int("names", 100, "names, taken in turn")
	workers := flags.Int("workers", 8, "threads")
	most := flags.Int("n", 0, "lookups of each worker; 0 for as many as there is time for")
	warm := flags.Duration("warm", 200*time.Millisecond, "time before counting")
	count := flags.Duration("count", time.Second, "time of counting")
	if err := flags.Parse(args); err != nil {
		return err
	}
	addr, err := netip.ParseAddrPort(*to)
	if err != nil {
		return fmt.Errorf("parse address of server: %w", err)
	}
	begin := time.Now().Add(*warm)
	end := begin.Add(*count)
	stubs := make([]stub, *workers)
	var running sync.WaitGroup
	for i := range stubs {
		s := &stubs[i]
		s.to = addr
		running.Go(func() {
			runtime.LockOSThread()
			for n := 0; *most == 0 || n < *most; n++ {
				now := time.Now()
				if now.After(end) {
					return
				}
				name := fmt.Sprintf("www-%d.%s", *first+(n**workers+i)%*names, outside)
				err := s.find(candidates(name, strings.Split(*search, ","), *ndots))
				s.result.All++
				switch {
				case err != nil:
					s.result.Errors++
					s.result.FirstError = fmt.Sprintf("look up %s: %v", name, err)
				case !now.Before(begin):
					s.result.Lookups++
				}
			}
		})
	}
	running.Wait()
	sum := lookedUp{Seconds: count.Seconds()}
	for _, s := range stubs {
		sum.Lookups += s.result.Lookups
		sum.All += s.result.All
		sum.Queries += s.result.Queries
		sum.Errors += s.result.Errors
		if s.result.FirstError != "" {
			sum.FirstError = s.result.FirstError
		}
	}
	return json.NewEncoder(out).Encode(sum)
}

// candidates are the names that a resolver tries for one, in their order.
func candidates(name string, search []string, ndots int) []string {
	var out []string
	for _, domain := range search {
		out = append(out, name+"."+domain)
	}
	if strings.Count(name, ".") >= ndots {
		return append([]string{name}, out...)
	}
	return append(out, name)
}

// stub is one thread of a stub resolver.
type stub struct {
	to     netip.AddrPort
	id     uint16
	result lookedUp
}

// find tries names until one has an address.
func (s *stub) find(names []string) error {
	for _, name := range names {
		found, err := s.try(name)
		if found || err != nil {
			return err
		}
	}
	return errors.New("there is no such name")
}

// try asks for both families. A name is found when either has an address; which must be the right one.
func (s *stub) try(name string) (found bool, err error) {
	fd, err := dial(unix.SOCK_DGRAM, s.to, time.Second)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var asked [2]question
	for i, qtype := range []uint16{typeA, typeAAAA} {
		if asked[i], err = newQuestion(name, qtype, rcodeSuccess); err != nil {
			return false, err
		}
		s.id++
		s.result.Queries++
		binary.BigEndian.PutUint16(asked[i].packet, s.id)
		if _, err := writeFD(fd, asked[i].packet); err != nil {
			return false, fmt.Errorf("send: %w", err)
		}
	}
	var buf [answerSize]byte
	for left := asked[:]; len(left) > 0; {
		n, err := readFD(fd, buf[:])
		if err != nil {
			return false, fmt.Errorf("wait for the answer to %s: %w", name, err)
		}
		msg := buf[:n]
		i := 0
		for ; i < len(left) && (n < 2 || [2]byte(msg) != [2]byte(left[i].packet)); i++ {
		}
		if i == len(left) {
			continue // late, to nobody
		}
		has, err := outsideAddress(&left[i], msg)
		if err != nil {
			return false, fmt.Errorf("the answer to %s %s: %w", name, typeNames[left[i].qtype], err)
		}
		found = found || has
		left[i], left = left[0], left[1:]
	}
	return found, nil
}

// outsideAddress says whether an answer has the address that the upstream gives, at whatever name an alias leads to. Another one, and a response code that
// is not about the name, are errors.
func outsideAddress(q *question, msg []byte) (bool, error) {
	if err := q.echoed(msg); err != nil {
		return false, err
	}
	if rcode := msg[3] & 0x0f; rcode == rcodeNotFound {
		return false, nil
	} else if rcode != rcodeSuccess {
		return false, errRcode
	}
	found := false
	at := len(q.packet)
	for range binary.BigEndian.Uint16(msg[6:]) {
		if at = skipName(msg, at); at < 0 || at+10 > len(msg) {
			return false, errRecord
		}
		rtype, size := binary.BigEndian.Uint16(msg[at:]), int(binary.BigEndian.Uint16(msg[at+8:]))
		at += 10
		if at+size > len(msg) {
			return false, errRecord
		}
		if rtype == q.qtype {
			if addr, ok := netip.AddrFromSlice(msg[at : at+size]); !ok || addr != outsideAddrs[rtype] {
				return false, errAddress
			}
			found = true
		}
		at += size
	}
	return found, nil
}
