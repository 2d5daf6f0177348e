// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// threadNetNS names the network namespace of the calling thread. /proc/self
// would name the one of the process's first thread.
const threadNetNS = "/proc/thread-self/ns/net"

// ErrNotNetNS is returned by [OpenNetNS] for a path that exists but is not a
// network namespace, such as the empty file that an unmounted bind mount
// leaves behind.
var ErrNotNetNS = errors.New("not a network namespace")

// NetNS is a network namespace held open by a file descriptor: it lives at
// least until [NetNS.Close]. All methods but Close may be used concurrently.
type NetNS struct {
	file *os.File
}

// NewNetNS makes a new network namespace with the loopback interface up and
// nothing else in it. It has no name; [NetNS.Bind] gives it one.
// It needs CAP_SYS_ADMIN.
func NewNetNS() (*NetNS, error) {
	var made *NetNS
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		if made, err = OpenNetNS(threadNetNS); err != nil {
			return err
		}
		if err = setLoopbackUp(); err != nil {
			made.Close()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return made, nil
}

// setLoopbackUp brings up lo in the current namespace. In a new namespace the
// loopback interface always has index 1.
func setLoopbackUp() error {
	b, err := NewBatch()
	if err != nil {
		return err
	}
	defer b.Close()
	b.LinkUp(1)
	if err := b.Send(); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	return nil
}

// OpenNetNS opens the network namespace at path: a bind mount, /proc/PID/ns/net
// or a descriptor under /proc. The error is [fs.ErrNotExist] when nothing is
// there and [ErrNotNetNS] when something else is.
func OpenNetNS(path string) (*NetNS, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	kind, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		file.Close()
		return nil, fmt.Errorf("open network namespace %s: %w", path, ErrNotNetNS)
	}
	return &NetNS{file: file}, nil
}

// CurrentNetNS opens the network namespace of the calling thread.
func CurrentNetNS() (*NetNS, error) { return OpenNetNS(threadNetNS) }

// Close gives up the descriptor. The namespace goes away when no process,
// mount or socket holds it any more.
func (n *NetNS) Close() error { return n.file.Close() }

// Fd returns the descriptor. It belongs to n and is closed by [NetNS.Close].
func (n *NetNS) Fd() int { return int(n.file.Fd()) }

// Path returns a path under which every process of this machine that may look
// into /proc can open the namespace, as long as this process lives and n is
// open. It fits CNI_NETNS.
func (n *NetNS) Path() string {
	return "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(n.Fd())
}

// Inode returns the number that identifies the namespace among those that are
// alive (it is what `ls -l /proc/PID/ns/net` shows). The kernel uses the numbers
// of dead namespaces again; [NetNS.Cookie] is never used again.
func (n *NetNS) Inode() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(n.Fd(), &st); err != nil {
		return 0, fmt.Errorf("stat network namespace: %w", err)
	}
	return st.Ino, nil
}

// Cookie returns the number that identifies the namespace among all there have
// been since boot (SO_NETNS_COOKIE, Linux 5.14).
func (n *NetNS) Cookie() (cookie uint64, err error) {
	b, err := n.Batch()
	if err != nil {
		return 0, err
	}
	defer b.Close()
	return b.Cookie()
}

// Same reports whether both are the same namespace.
func (n *NetNS) Same(other *NetNS) bool {
	a, errA := n.Inode()
	b, errB := other.Inode()
	return errA == nil && errB == nil && a == b
}

// Bind names the namespace: it makes the file path (and its directory) and
// mounts the namespace on it, so that it lives until [Unbind]. A file left there
// without a mount is used again.
func (n *NetNS) Bind(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("bind network namespace: %w", err)
	}
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return fmt.Errorf("bind network namespace: %w", err)
	}
	file.Close()
	source := "/proc/thread-self/fd/" + strconv.Itoa(n.Fd())
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind network namespace to %s: %w", path, err)
	}
	return nil
}

// Unbind takes back a [NetNS.Bind]: unmounts path and removes the file. A path
// that is not mounted, or not there, is no error.
func Unbind(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // nothing mounted here (any more)
		}
		if err != nil {
			return fmt.Errorf("unbind network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unbind network namespace: %w", err)
	}
	return nil
}

// Do runs f inside the namespace and returns its error. f runs in a goroutine
// of its own that is locked to its thread: goroutines started by f are not
// inside, sockets opened by f stay inside for good. The caller waits; a panic
// or Goexit (such as testing.T.FailNow) in f happens to the caller too.
func (n *NetNS) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread that f may move to another network namespace, and
// moves the thread back. If that fails the thread stays locked to its goroutine
// and dies with it.
func onThread(f func() error) error {
	var (
		err      error
		panicked any
		finished bool // false after f: it left by panic or Goexit
		done     = make(chan struct{})
	)
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, homeErr := os.OpenFile(threadNetNS, os.O_RDONLY|unix.O_CLOEXEC, 0)
		if homeErr != nil {
			runtime.UnlockOSThread()
			err, finished = fmt.Errorf("open current network namespace: %w", homeErr), true
			return
		}
		defer func() {
			if !finished {
				panicked = recover()
			}
			backErr := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
			home.Close()
			if backErr == nil {
				runtime.UnlockOSThread()
			}
		}()
		err = f()
		finished = true
	}()
	<-done
	if panicked != nil {
		panic(panicked)
	}
	if !finished {
		runtime.Goexit()
	}
	return err
}

// onDoomedThread runs f on a thread that is not used for anything afterwards. It
// is never the first one, which lends its namespaces to /proc/self.
func onDoomedThread(f func() error) error {
	err := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err <- onDoomedThread(f) // on another thread, as this one is busy waiting
			runtime.UnlockOSThread()
			return
		}
		err <- f()
	}()
	return <-err
}

// Netlink returns an rtnetlink handle whose requests act inside the namespace.
// The caller closes it.
func (n *NetNS) Netlink() (*netlink.Handle, error) {
	var handle *netlink.Handle
	err := n.Do(func() (err error) {
		handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return handle, nil
}

// Listen is net.Listen inside the namespace. address is a literal IP and port:
// names would be resolved outside.
func (n *NetNS) Listen(network, address string) (listener net.Listener, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("listen on %q: %w", address, err)
	}
	err = n.Do(func() (err error) {
		listener, err = net.Listen(network, address)
		return err
	})
	return listener, err
}

// ListenPacket is net.ListenPacket inside the namespace. address is a literal IP
// and port.
func (n *NetNS) ListenPacket(network, address string) (conn net.PacketConn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("listen on %q: %w", address, err)
	}
	err = n.Do(func() (err error) {
		conn, err = net.ListenPacket(network, address)
		return err
	})
	return conn, err
}

// Dial is net.Dialer.DialContext inside the namespace. address is a literal IP
// and port.
func (n *NetNS) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return n.DialFrom(ctx, network, netip.AddrPort{}, address)
}

// DialFrom is [NetNS.Dial] with a local address and port; port 0 lets the kernel
// choose, and the zero value both.
func (n *NetNS) DialFrom(ctx context.Context, network string, from netip.AddrPort, address string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial %q: %w", address, err)
	}
	var dialer net.Dialer
	if from.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(from)
		if len(network) > 2 && network[:3] == "udp" {
			dialer.LocalAddr = net.UDPAddrFromAddrPort(from)
		}
	}
	err = n.Do(func() (err error) {
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}
