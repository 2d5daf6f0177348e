// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is the unit of times in /proc/PID/stat, USER_HZ, which is 100 everywhere.
const clockTick = 10 * time.Millisecond

// cpuTime is the processor time that a process, those it has started, and those of them that have ended have used: a contender may be of several
// processes, or call a tool. What runs is exact; what has ended is known in steps of 10 ms.
func cpuTime(pid int) (sum time.Duration, err error) {
	err = ofFamily(pid, func(member int) error {
		used, err := ownTime(member)
		sum += used
		return err
	})
	return sum, err
}

// ofFamily does something about a process and each of those it has started. That one of the latter ends meanwhile is no error.
func ofFamily(pid int, do func(member int) error) error {
	members, err := familyOf(pid)
	for _, member := range members {
		if e := do(member); e != nil && (member == pid || !gone(e)) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// gone reports whether an error is that a process has ended.
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL)
}

// ownTime is the processor time of a process and of the children that it has waited for.
func ownTime(pid int) (time.Duration, error) {
	var own unix.Timespec
	if err := unix.ClockGettime(processClock(pid), &own); err != nil {
		return 0, fmt.Errorf("read processor clock of %d: %w", pid, err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read processor time of %d: %w", pid, err)
	}
	children, err := childrenTime(string(stat))
	return time.Duration(own.Nano()) + children, err
}

// processClock names another process's clock, as clock_getcpuclockid(3) does: the inverted pid, and the kind (scheduler time) in the low bits.
func processClock(pid int) int32 { return ^int32(pid)<<3 | 2 }

// childrenTime reads cutime and cstime. The second field, the program's name, may hold spaces and parentheses.
func childrenTime(stat string) (time.Duration, error) {
	end := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[end+1:])
	const cutime, cstime = 16 - 3, 17 - 3 // proc_pid_stat(5) counts from 1; what is left starts with the third
	if end < 0 || len(fields) <= cstime {
		return 0, fmt.Errorf("parse process statistics %q", stat)
	}
	user, err := strconv.Atoi(fields[cutime])
	if err != nil {
		return 0, fmt.Errorf("parse cutime: %w", err)
	}
	system, err := strconv.Atoi(fields[cstime])
	if err != nil {
		return 0, fmt.Errorf("parse cstime: %w", err)
	}
	return time.Duration(user+system) * clockTick, nil
}

// idleFor is how long a process must have used next to no processor time to count as done with what it had to do.
const idleFor = 400 * time.Millisecond

// cpuWhenIdle waits until a process and those it has started have nothing more to do, and returns their processor time. What a tool used that is called
// now is only known after it has ended.
func cpuWhenIdle(ctx context.Context, pid int) (time.Duration, error) {
	before, err := cpuTime(pid)
	for err == nil {
		var members, later []int
		if members, err = familyOf(pid); err != nil {
			break
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for process %d to be idle: %w", pid, ctx.Err())
		case <-time.After(idleFor):
		}
		var now time.Duration
		if now, err = cpuTime(pid); err != nil {
			break
		}
		if later, err = familyOf(pid); err == nil && now-before < idleFor/100 && slices.Equal(members, later) {
			return now, nil
		}
		before = now
	}
	return 0, err
}

// restFor is longer than an agent takes to give back, after the last change, what changes took.
const restFor = 61 * time.Second

// rest waits until a process that has been started, or told of changes, has given back what that took, if it does so within a minute.
func (s *suite) rest(ctx context.Context) error {
	wait := pick(s, restFor, 0)
	progress("waiting for %v of rest", wait)
	select {
	case <-ctx.Done():
		return fmt.Errorf("wait for rest: %w", ctx.Err())
	case <-time.After(wait):
		return nil
	}
}

// familyOf is a process and all that have it as ancestor, in order.
func familyOf(pid int) ([]int, error) {
	parents := map[int]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		behind := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || len(behind) < 2 {
			continue
		}
		if parents[child], err = strconv.Atoi(behind[1]); err != nil {
			return nil, fmt.Errorf("parse parent of %d: %w", child, err)
		}
	}
	members := family(parents, pid)
	slices.Sort(members)
	return members, nil
}

// family is a process and what has it as ancestor, given everybody's parents.
func family(parents map[int]int, pid int) []int {
	out := []int{pid}
	for i := 0; i < len(out); i++ {
		for child, parent := range parents {
			if parent == out[i] {
				out = append(out, child)
			}
		}
	}
	return out
}

// confine keeps a process and those it has started on one processor.
func confine(pid, cpu int) error {
	return ofFamily(pid, func(member int) error { return confineOne(member, cpu) })
}

// confineOne keeps all threads of a process on one processor.
func confineOne(pid, cpu int) error {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return fmt.Errorf("list threads of %d: %w", pid, err)
	}
	var set unix.CPUSet
	set.Set(cpu)
	for _, task := range tasks {
		tid, err := strconv.Atoi(filepath.Base(task))
		if err != nil {
			return fmt.Errorf("parse thread of %d: %w", pid, err)
		}
		if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("confine thread %d: %w", tid, err)
		}
	}
	return nil
}

// memory is what a process, and those it has started, hold, in bytes. The contenders are static programs that share pages with nobody but other instances of
// themselves, of which there are several here and one on a node.
type memory struct {
	RSS  float64 // the agent is two processes of one program, so this counts their common pages twice
	PSS  float64 // nearly what the proportional set sizes would sum up to on a node of their own: pages of the program as the one has them that has most
	Own  float64 // the processes' own: what is not pages of their program
	Peak float64 // the most that was resident at a time
}

func memoryOf(pid int) (memory, error) {
	var members []resident
	err := ofFamily(pid, func(member int) error {
		m, err := memoryOfOne(member)
		members = append(members, m)
		return err
	})
	return together(members), err
}

// resident is what one process holds, in bytes: all, its own of it, and the most that all has been.
type resident struct{ all, own, peak float64 }

// together is what processes of one program hold: what is not their own are pages of that program.
func together(members []resident) (sum memory) {
	var program float64
	for _, m := range members {
		sum.RSS, sum.Own, sum.Peak = sum.RSS+m.all, sum.Own+m.own, sum.Peak+m.peak
		program = max(program, m.all-m.own)
	}
	sum.PSS = sum.Own + program
	return sum
}

func memoryOfOne(pid int) (resident, error) {
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return resident{}, fmt.Errorf("read memory of %d: %w", pid, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return resident{}, fmt.Errorf("read memory of %d: %w", pid, err)
	}
	rss, err := kilobytes(rollup, "Rss:")
	if err != nil {
		return resident{}, err
	}
	own, err := kilobytes(rollup, "Anonymous:")
	if err != nil {
		return resident{}, err
	}
	peak, err := kilobytes(status, "VmHWM:")
	return resident{rss, own, peak}, err
}

// kilobytes reads a line such as "Rss:  1234 kB", in bytes.
func kilobytes(text []byte, key string) (float64, error) {
	for line := range bytes.Lines(text) {
		fields := strings.Fields(string(line))
		if len(fields) == 3 && fields[0] == key && fields[2] == "kB" {
			n, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				return 0, fmt.Errorf("parse %s: %w", key, err)
			}
			return n * 1024, nil
		}
	}
	return 0, fmt.Errorf("parse memory: no line %s", key)
}

// machineTime is how all processors together have spent their time since boot.
type machineTime struct{ idle, softirq, steal, total time.Duration }

func readMachineTime() (machineTime, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machineTime{}, fmt.Errorf("read processor statistics: %w", err)
	}
	return parseMachineTime(string(b))
}

// parseMachineTime reads the first line: user nice system idle iowait irq softirq steal. Guest time, behind it, is part of user's.
func parseMachineTime(stat string) (m machineTime, err error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return m, fmt.Errorf("parse processor statistics %q", line)
	}
	for i, f := range fields[1:9] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return m, fmt.Errorf("parse processor statistics: %w", err)
		}
		d := time.Duration(n) * clockTick
		m.total += d
		switch i {
		case 3, 4:
			m.idle += d
		case 6:
			m.softirq += d
		case 7:
			m.steal += d
		}
	}
	return m, nil
}

// mostSteal is the share of the processors' time that the hypervisor may take before a round is void.
const mostSteal = 0.01

// stolen runs f and says whether the hypervisor took too much meanwhile.
func stolen(f func() error) (bool, error) {
	before, err := readMachineTime()
	if err != nil {
		return false, err
	}
	if err := f(); err != nil {
		return false, err
	}
	after, err := readMachineTime()
	if err != nil {
		return false, err
	}
	return float64(after.steal-before.steal) > mostSteal*float64(after.total-before.total), nil
}

// quiet waits until the machine has done next to nothing for a moment, so that what one contender has left to do (the kernel frees a large table
// long after it is gone) does not burden the next. It gives up after a while.
func quiet(ctx context.Context) {
	const (
		look = 300 * time.Millisecond
		busy = 0.06
	)
	before, err := readMachineTime()
	for range 20 {
		if err != nil || ctx.Err() != nil {
			return
		}
		time.Sleep(look)
		var now machineTime
		now, err = readMachineTime()
		if total := now.total - before.total; total > 0 && 1-float64(now.idle-before.idle)/float64(total) < busy {
			return
		}
		before = now
	}
	progress("the machine does not get quiet; going on")
}

// busyTime is for how long since boot a processor has done anything, whoever for, in steps of 10 ms; and for how long of it in softirqs, where the
// kernel takes packets in.
func busyTime(cpu int) (busy, softirq time.Duration, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("read processor statistics: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if behind, ok := strings.CutPrefix(line, fmt.Sprintf("cpu%d ", cpu)); ok {
			m, err := parseMachineTime("cpu " + behind)
			return m.total - m.idle - m.steal, m.softirq, err
		}
	}
	return 0, 0, fmt.Errorf("read processor statistics: there is no processor %d", cpu)
}
