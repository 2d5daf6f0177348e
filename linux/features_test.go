// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/testnet"
)

// TestCheck runs where everything is there: CI and the developer's machine as
// root. A missing feature is a skip that names it.
func TestCheck(t *testing.T) {
	testnet.MustRoot(t)
	testnet.NoLeaks(t)
	if err := linux.Check(context.Background()); err != nil {
		testnet.Skip(t, err.Error())
	}
	for _, f := range linux.Features(context.Background()) {
		if f.Err != nil || f.Name == "" || !strings.HasSuffix(f.Todo, ".") {
			t.Errorf("%+v", f)
		}
	}
}

func TestCheckEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := linux.Check(ctx)
	if !errors.Is(err, context.Canceled) || errors.Is(err, linux.ErrUnsupported) {
		t.Errorf("ended context: %v", err)
	}
}

func TestMissingError(t *testing.T) {
	var err error = &linux.MissingError{Feature: linux.Feature{Name: "veth interfaces", Todo: "load the module.", Err: unix.EOPNOTSUPP}}
	if !errors.Is(err, linux.ErrUnsupported) || !errors.Is(err, unix.EOPNOTSUPP) {
		t.Error("Is is wrong")
	}
	if got, want := err.Error(), "veth interfaces: operation not supported: load the module."; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
