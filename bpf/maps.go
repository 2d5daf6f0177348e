// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"

	"github.com/cilium/ebpf"
)

// Total is what the programs have counted on all processors, in a map of one number for each; 0 if it cannot be read.
func Total(counter *ebpf.Map) (sum uint64) {
	var each []uint64
	if err := counter.Lookup(uint32(0), &each); err != nil {
		return 0
	}
	for _, n := range each {
		sum += n
	}
	return sum
}

// IgnoreMissing is nil for the error that a map has no such key.
func IgnoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}
