// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The files of a store, below its directory.
const (
	fileName    = "leases"
	lockName    = "lock"
	tmpName     = "leases.tmp"
	corruptName = "leases.corrupt"
)

// slack is about how many lines more than needed a file may have before it is
// written anew. Every operation reads all lines, every rewriting waits for the
// disk once.
const slack = 128

// Config is what a [Store] needs to know.
type Config struct {
	Dir    string         // made if it is not there
	Ranges []netip.Prefix // one, or one of each family; none: nothing can be allocated. Leases outside of them stay until they are freed

	// Live returns the leases that are in use as far as the kernel can tell, with
	// at least ID and Addrs. It is asked when the file cannot tell: it is not
	// there, it is damaged, or it was written before the machine started. nil:
	// there are none.
	Live func() ([]Lease, error)

	Log *slog.Logger // where a repair is told; nil: nowhere
}

// Store is the lease file of one node. It keeps nothing in memory: every method
// locks the file, reads it, and adds a line. All methods may be used by many
// goroutines and processes at once.
type Store struct {
	Config
	boot string
	now  func() time.Time
}

// New checks the configuration. It touches no file.
func New(cfg Config) (*Store, error) {
	if len(cfg.Ranges) > 2 || len(cfg.Ranges) == 2 && cfg.Ranges[0].Addr().Is4() == cfg.Ranges[1].Addr().Is4() {
		return nil, fmt.Errorf("ranges %v: want one, or one of each address family", cfg.Ranges)
	}
	for _, r := range cfg.Ranges {
		if r.Addr().Is4In6() {
			return nil, fmt.Errorf("range %s: write it as IPv4", r)
		}
		if _, _, err := Bounds(r); err != nil {
			return nil, err
		}
	}
	if cfg.Dir == "" {
		return nil, errors.New("no directory for the lease file")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	return &Store{Config: cfg, boot: strings.TrimSpace(string(boot)), now: time.Now}, nil
}

// Allocate returns the lease with want.ID, and makes it if there is none or if
// its addresses are no longer in the ranges. The other texts of want are stored
// with it; its Addrs and AllocatedAt are ignored. The error is a [*FullError]
// when a range has no free address.
func (s *Store) Allocate(want Lease) (Lease, error) {
	if len(s.Ranges) == 0 {
		return Lease{}, errors.New("allocate addresses: no range is configured")
	}
	want.Addrs, want.AllocatedAt = nil, s.now()
	var got Lease
	err := s.update(func(st *state) ([]record, error) {
		have, ok := st.held[want.ID]
		if ok && have.fits(s.Ranges) {
			if have.ContainerID != "" && have.ContainerID != want.ContainerID {
				return nil, fmt.Errorf("lease %s belongs to container %s", want.ID, have.ContainerID)
			}
			want.Addrs, want.AllocatedAt = have.Addrs, have.AllocatedAt
			if got = *have; have.same(&want) {
				return nil, nil
			}
		} else {
			var records []record
			if ok { // so that its addresses count as the last freed ones
				records = append(records, record{Free: &free{want.ID, s.now()}})
				st.apply(records[0])
			}
			addrs, err := st.pick(s.Ranges)
			if err != nil {
				return nil, err
			}
			want.Addrs = addrs
			got = want
			return append(records, record{Hold: &want}), want.check()
		}
		got = want
		return []record{{Hold: &want}}, want.check()
	})
	if err != nil {
		return Lease{}, fmt.Errorf("allocate addresses: %w", err)
	}
	return got, nil
}

// Release ends the lease and returns it. One that is not there is no error: the
// returned lease then has no ID. Call it when nothing uses the addresses any
// more.
func (s *Store) Release(id string) (Lease, error) {
	var was Lease
	err := s.update(func(st *state) ([]record, error) {
		lease, ok := st.held[id]
		if !ok {
			return nil, nil
		}
		was = *lease
		return []record{{Free: &free{id, s.now()}}}, nil
	})
	if err != nil {
		return Lease{}, fmt.Errorf("release addresses: %w", err)
	}
	return was, nil
}

// Adopt asks the kernel what is in use, as [Config.Live] does when the file is
// made new, and holds it. It is for a caller that finds an address in use which
// it has just been given.
func (s *Store) Adopt() error {
	err := s.update(func(st *state) ([]record, error) {
		if err := s.adoptLive(st); err != nil {
			return nil, err
		}
		return nil, s.rewrite(st)
	})
	if err != nil {
		return fmt.Errorf("adopt addresses: %w", err)
	}
	return nil
}

// Lookup returns the lease with this ID, or one without ID if there is none.
func (s *Store) Lookup(id string) (Lease, error) {
	var lease Lease
	err := s.update(func(st *state) ([]record, error) {
		if held := st.held[id]; held != nil {
			lease = *held
		}
		return nil, nil
	})
	if err != nil {
		return Lease{}, fmt.Errorf("look up addresses: %w", err)
	}
	return lease, nil
}

// Leases returns all leases in the order of their addresses, after mending the
// file if it needs that.
func (s *Store) Leases() ([]Lease, error) {
	var leases []Lease
	err := s.update(func(st *state) ([]record, error) {
		leases = st.leases()
		return nil, nil
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return leases, nil
}

// Reconcile frees every lease for which live returns false and returns those. It
// holds the lock while it asks, so live must not use the store.
func (s *Store) Reconcile(live func(Lease) bool) ([]Lease, error) {
	var gone []Lease
	err := s.update(func(st *state) ([]record, error) {
		var records []record
		for _, lease := range st.leases() {
			if !live(lease) {
				gone = append(gone, lease)
				records = append(records, record{Free: &free{lease.ID, s.now()}})
			}
		}
		return records, nil
	})
	if err != nil {
		return nil, fmt.Errorf("reconcile addresses: %w", err)
	}
	return gone, nil
}

// Read returns the leases in the file below dir without locking or mending it,
// in the order of their addresses. A file that is not there, or that was written
// before the machine started, has none. With a damaged file it returns those that
// can be read and a [*CorruptError].
func Read(dir string) ([]Lease, error) {
	path := filepath.Join(dir, fileName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read leases: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read leases: %w", err)
	}
	st, _, err := decode(data)
	var corrupt *CorruptError
	if errors.As(err, &corrupt) {
		corrupt.Path = path
		return st.leases(), corrupt
	}
	if st.boot != strings.TrimSpace(string(boot)) {
		return nil, nil
	}
	return st.leases(), nil
}

// update is the only way to the file: it locks it, reads and if need be mends
// it, asks change for records, and adds them.
func (s *Store) update(change func(*state) ([]record, error)) error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	// Whoever died while it wrote a new file has left half of it.
	if err := os.Remove(s.path(tmpName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, st, err := s.open()
	if err != nil {
		return err
	}
	defer file.Close()
	records, err := change(st)
	if err != nil || len(records) == 0 {
		return err
	}
	var lines []byte
	for _, r := range records {
		lines = append(lines, encodeRecord(r)...)
	}
	if err := appendAll(file, lines); err != nil {
		return err
	}
	if st.lines+len(records) <= len(st.held)+len(st.uses)/freedPerLine+slack {
		return nil
	}
	for _, r := range records {
		st.apply(r)
	}
	// The change is in the file, so it has happened; that the file is too long is a matter of time.
	if err := s.rewrite(st); err != nil {
		s.Log.Warn("lease file grows until it can be written anew", "err", err)
	}
	return nil
}

// lock waits until no other process or goroutine has the file.
func (s *Store) lock() (unlock func(), err error) {
	return s.wait(func(fd uintptr) error { return unix.Flock(int(fd), unix.LOCK_EX) })
}

// Exclusive waits until nobody else works on the attachment with this ID, and returns how to let the next one. Nothing is left behind: it is a byte
// of the lock file, which need not be there to be locked.
func (s *Store) Exclusive(id string) (done func(), err error) {
	sum := fnv.New64a()
	sum.Write([]byte(id))
	// Two that share a byte wait for each other without need, and no more.
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: int64(sum.Sum64() >> 2), Len: 1}
	if err = os.MkdirAll(s.Dir, 0o700); err == nil {
		done, err = s.wait(func(fd uintptr) error { return unix.FcntlFlock(fd, unix.F_OFD_SETLKW, &lock) })
	}
	if err != nil {
		return nil, fmt.Errorf("lock attachment %s: %w", id, err)
	}
	return done, nil
}

// wait takes a lock of the lock file. The kernel lets go when a process dies.
func (s *Store) wait(take func(fd uintptr) error) (unlock func(), err error) {
	file, err := os.OpenFile(s.path(lockName), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = take(file.Fd()); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	return func() { file.Close() }, nil
}

// open returns the file, mended and ready for appending, and what is in it.
func (s *Store) open() (*os.File, *state, error) {
	data, err := os.ReadFile(s.path(fileName))
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return nil, nil, err
	}
	st, good, damage := decode(data)
	if missing || damage != nil || st.boot != s.boot {
		if err := s.mend(st, missing, damage); err != nil {
			return nil, nil, err
		}
		good = len(data)
	}
	file, err := os.OpenFile(s.path(fileName), os.O_RDWR|os.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if good < len(data) { // a line that was cut short: the next one must not continue it
		if err := file.Truncate(int64(good)); err != nil {
			file.Close()
			return nil, nil, err
		}
	}
	return file, st, nil
}

// mend makes a new file out of what is left of the old one and what the kernel
// knows. Leases of an earlier boot are freed; when damage has taken the name of
// the boot too, they are kept: rather a leak than an address given twice.
func (s *Store) mend(st *state, missing bool, damage error) error {
	var corrupt *CorruptError
	if errors.As(damage, &corrupt) && !missing {
		corrupt.Path = s.path(fileName)
		s.Log.Warn("mending lease file from its good lines and the kernel", "err", corrupt, "leases", len(st.held), "copy", s.path(corruptName))
		if err := s.keepCorrupt(); err != nil {
			return err
		}
	}
	if st.boot != "" && st.boot != s.boot {
		for _, lease := range st.leases() {
			st.release(lease.ID, s.now())
		}
	}
	st.boot = s.boot
	if err := s.adoptLive(st); err != nil {
		return err
	}
	return s.rewrite(st)
}

// adoptLive takes in what the kernel has in use.
func (s *Store) adoptLive(st *state) error {
	if s.Live == nil {
		return nil
	}
	live, err := s.Live()
	if err != nil {
		return fmt.Errorf("find addresses in use: %w", err)
	}
	for _, lease := range live {
		if err := lease.check(); err != nil {
			return fmt.Errorf("find addresses in use: %w", err)
		}
		st.adopt(lease, s.now())
	}
	return nil
}

// keepCorrupt gives the damaged file a second name, so that it survives being
// replaced.
func (s *Store) keepCorrupt() error {
	if err := os.Remove(s.path(corruptName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Link(s.path(fileName), s.path(corruptName))
}

// rewrite replaces the file by one that holds just the state. It is there
// completely or not at all, also when the machine dies.
func (s *Store) rewrite(st *state) error {
	tmp, err := os.OpenFile(s.path(tmpName), os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	text := st.encode()
	st.lines = bytes.Count(text, []byte("\n"))
	_, err = tmp.Write(text)
	if err == nil {
		err = tmp.Sync()
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name())) // others need the room
	}
	return os.Rename(s.path(tmpName), s.path(fileName))
}

// appendAll writes all or nothing, as far as the disk allows: what remains of a
// failed write would be taken for the line of a writer that died.
func appendAll(file *os.File, lines []byte) error {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err = file.Write(lines); err != nil {
		return errors.Join(err, file.Truncate(size))
	}
	return nil
}

func (s *Store) path(name string) string { return filepath.Join(s.Dir, name) }
