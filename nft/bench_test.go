// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
)

// cpu reports the processor time of a benchmark's operation beside the time on the clock: that of the whole process, and of the
// kernel on its behalf. On a busy machine it is the better figure.
func cpu(b *testing.B) (stop func()) {
	used := func() int64 {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	start := used()
	return func() { b.ReportMetric(float64(used()-start)/float64(b.N), "cpu-ns/op") }
}

// BenchmarkOneEndpoint is the cost of one endpoint that is replaced by another, in a cluster of some size: comparison, transaction,
// kernel. It should not depend on the size.
//
//	go test ./nft -run - -bench OneEndpoint
func BenchmarkOneEndpoint(b *testing.B) {
	for _, services := range []int{10, 1000, 20000} {
		b.Run(fmt.Sprint(services), func(b *testing.B) {
			builder := manyServices(services, 10)
			target := newTarget(b, newNS(b))
			// Two snapshots that differ in the endpoint of one Service, and the building of neither.
			var snaps [2]*model.Snapshot
			for i := range snaps {
				setMany(builder, services/2, 10, i)
				snaps[i] = builder.Build()
				apply(b, target, snaps[i])
			}
			defer cpu(b)()
			for i := 0; b.Loop(); i++ {
				apply(b, target, snaps[i%2])
			}
		})
	}
}

// BenchmarkLoad is the time from an empty namespace to all Services programmed, and BenchmarkAdopt that of a start that finds
// them there.
func BenchmarkLoad(b *testing.B) {
	for _, services := range []int{1000, 10000, 20000} {
		b.Run(fmt.Sprint(services), func(b *testing.B) {
			snap := manyServices(services, 10).Build()
			defer cpu(b)()
			for b.Loop() {
				b.StopTimer()
				target := newTarget(b, newNS(b))
				b.StartTimer()
				apply(b, target, snap)
				b.StopTimer()
				target.Close()
				b.StartTimer()
			}
		})
	}
}

func BenchmarkAdopt(b *testing.B) {
	for _, services := range []int{1000, 20000} {
		b.Run(fmt.Sprint(services), func(b *testing.B) {
			ns, snap := newNS(b), manyServices(services, 10).Build()
			apply(b, newTarget(b, ns), snap)
			defer cpu(b)()
			for b.Loop() {
				target := newTarget(b, ns)
				apply(b, target, snap)
				target.Close()
			}
		})
	}
}
