// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestMemory(t *testing.T) {
	block := func(head, rss, anonymous string) string {
		return head + "\nSize:               1236 kB\nRss:                " + rss + "\nPss:                 500 kB\nAnonymous:          " + anonymous +
			"\nLazyFree:              0 kB\nVmFlags: rd ex mr mw me \n"
	}
	const path = "/usr/bin/fair lead"
	code := block("00400000-00ff0000 r-xp 00000000 fe:00 1234                               "+path, "100 kB", "0 kB")
	for _, c := range []struct {
		name, smaps string
		want        []mapped
	}{
		{"code and tables", code + block("00ff0000-01bce000 r--p 00bf0000 fe:00 1234 "+path, "20 kB", "0 kB"),
			[]mapped{{0x400000, 0xff0000}, {0xff0000, 0x1bce000}}},
		{"data", block("01bce000-01c70000 rw-p 017ce000 fe:00 1234 "+path, "8 kB", "0 kB") + code, []mapped{{0x400000, 0xff0000}}},
		{"changed when it was loaded", block("00ff0000-01bce000 r--p 00bf0000 fe:00 1234 "+path, "20 kB", "4 kB"), nil},
		{"somebody else's", block("7f0000000000-7f0000010000 r--p 00000000 fe:00 77 /lib/libc.so.6", "4 kB", "0 kB"), nil},
		{"a longer name", block("00400000-00ff0000 r-xp 00000000 fe:00 1234 "+path+"2", "4 kB", "0 kB"), nil},
		{"nobody's", block("7f0000000000-7f0000010000 r--p 00000000 00:00 0 ", "4 kB", "0 kB") + block("7ffff000-80000000 r-xp 00000000 00:00 0 [vdso]", "4 kB", "0 kB"), nil},
		{"without what is said of it", "00400000-00ff0000 r-xp 00000000 fe:00 1234 " + path + "\n", nil},
		{"of something else", "00400000-00ff0000 r-xp 00000000 fe:00 1234 " + path + "\n7f0000000000-7f0000010000 rw-p 00000000 00:00 0 \nAnonymous: 0 kB\n", nil},
		{"unreadable", block("004x0000-00ff0000 r-xp 00000000 fe:00 1234 "+path, "4 kB", "0 kB") + block("00400000-00ff0000 r-xp", "4 kB", "0 kB") +
			block("00400000-00ff0000 r-xp 00000000 fe:00 1234 "+path, "4 kB", "much"), nil},
		{"empty", "", nil},
	} {
		if got := memory(c.smaps, path); !slices.Equal(got, c.want) {
			t.Errorf("%s: %x, want %x", c.name, got, c.want)
		}
	}
}

// What is given up is less than before, and the program is as it was.
func TestRelease(t *testing.T) {
	// What is in memory of files, in KiB: of a static program, itself.
	resident := func() (n int) {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(status), "RssFile:")
		if _, err := fmt.Sscanf(rest, "%d kB", &n); err != nil {
			t.Fatalf("read RssFile: %v", err)
		}
		return n
	}
	before := resident()
	if err := Release(); err != nil {
		t.Fatal(err)
	}
	if after := resident(); after > before*3/4 {
		t.Errorf("%d KiB, %d before", after, before)
	}
	TestMemory(t)
}
