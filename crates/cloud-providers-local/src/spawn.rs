//! Starts the first process of an instance.
#![expect(
    unsafe_code,
    reason = "the new process namespace's /proc can be mounted only by its first process, before its program runs"
)]

use std::{
    cell::Cell,
    ffi::{CString, NulError},
    fs::File,
    io::{self, Write},
    os::fd::AsRawFd,
    ptr::{null, null_mut},
};

use cloud_providers::Result;
use nix::{
    libc,
    mount::{MsFlags, mount},
    sched::{CloneFlags, clone, unshare},
    sys::signal::SigSet,
    sys::wait::waitpid,
    unistd::setsid,
};

use crate::{cgroups::Groups, error::io_error};

/// The stack of the process until its program runs. Its deepest call is `mount`, with 4 KiB for paths.
const STACK: usize = 64 * 1024;

/// What to start.
pub(crate) struct Init {
    /// Path inside the instance.
    pub(crate) program: String,
    /// Arguments.
    pub(crate) args: Vec<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// Takes standard output and standard error.
    pub(crate) console: File,
}

/// Starts the process and returns its number on this host.
///
/// The caller is a thread that has already unshared its namespaces and changed its root. The process gets a session
/// of its own and no tie to us: it lives on when we end.
///
/// It shares our memory until its program runs, while the calling thread waits. A copy of that memory, as `fork` makes
/// it, would cost every other thread a fault for each page it writes next.
pub(crate) fn spawn(init: Init, groups: &Groups) -> Result<i32> {
    let Init { program, args, env, console } = init;
    let failed = |step: &str, e: io::Error| {
        io_error("cannot start the instance's first program", e).with("program", &program).with("step", step)
    };
    let words = || -> Result<_, NulError> {
        let argv = std::iter::once(program.as_str()).chain(args.iter().map(String::as_str));
        let argv = argv.map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let env = env.iter().map(|(key, value)| CString::new(format!("{key}={value}")));
        Ok((argv, env.collect::<Result<Vec<_>, _>>()?))
    };
    let (argv, env) = words().map_err(|e| failed("pass the arguments", e.into()))?;
    let input = File::open("/dev/null").map_err(|e| failed("open /dev/null", e))?;
    let child = Child {
        streams: [&input, &console, &console].map(AsRawFd::as_raw_fd),
        groups,
        argv: pointers(&argv),
        env: pointers(&env),
    };

    let problem = Cell::new(None);
    let begin = || {
        let Err((step, error)) = child.become_program();
        problem.set(Some((step, error)));
        1
    };
    // The process has our handlers until it resets them, and they would work on our memory.
    let mask = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK);
    let mask = mask.map_err(|e| failed("block signals", e.into()))?;
    let mut stack = vec![0; STACK];
    // SAFETY: with `CLONE_VFORK` this thread stands still until the process runs its program or has ended, so that
    // what the closure borrows stays where it is, and the stack is used by nobody else. Other threads go on, in the
    // same memory: the closure takes no lock and allocates nothing, see `become_program`.
    let pid = unsafe {
        let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
        clone(Box::new(begin), &mut stack, flags, Some(libc::SIGCHLD))
    };
    mask.thread_set_mask().map_err(|e| failed("restore the signals", e.into()))?;
    let pid = pid.map_err(|e| failed("make a process", e.into()))?;
    if let Some((step, error)) = problem.take() {
        // It has ended already. Somebody else may have waited for all children.
        let _ = waitpid(pid, None);
        return Err(failed(step, error));
    }
    Ok(pid.as_raw())
}

/// The array that `execve` takes, which is valid as long as the words are.
fn pointers(words: &[CString]) -> Vec<*const libc::c_char> {
    words.iter().map(|word| word.as_ptr()).chain([null()]).collect()
}

/// What the process needs until its program runs.
struct Child<'a> {
    streams: [libc::c_int; 3],
    groups: &'a Groups,
    argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
}

impl Child<'_> {
    /// Makes the calling process that program; returns only what failed, and at which step.
    ///
    /// All of this is bare system calls on numbers, on buffers that are part of the program, and on what was made
    /// before. `mount` copies its short paths to the stack.
    fn become_program(&self) -> Result<std::convert::Infallible, (&'static str, io::Error)> {
        fn at<T, E: Into<io::Error>>(
            step: &'static str,
            result: Result<T, E>,
        ) -> Result<T, (&'static str, io::Error)> {
            result.map_err(|e| (step, e.into()))
        }
        let checked = |result: libc::c_long| match result {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        };
        for (target, stream) in (0..).zip(self.streams) {
            // SAFETY: see above; the descriptors are open until the process has its program.
            at("pass the console", checked(unsafe { libc::dup2(stream, target) }.into()))?;
        }
        // SAFETY: the path is a constant.
        at("change to /", checked(unsafe { libc::chdir(c"/".as_ptr()) }.into()))?;
        at("make a session", setsid())?;
        // Zero stands for the writer. Which groups are the roots is settled when the namespace is made.
        for group in self.groups.iter() {
            at("enter the control group", (&group.root).write_all(b"0"))?;
        }
        at("make the namespace of control groups", unshare(CloneFlags::CLONE_NEWCGROUP))?;
        for leaf in self.groups.iter().filter_map(|group| group.leaf.as_ref()) {
            let mut leaf: &File = leaf;
            at("enter the control group of programs", leaf.write_all(b"0"))?;
        }
        // What our own parent left open in us is none of the instance's business.
        let last = libc::c_uint::MAX;
        // SAFETY: a bare system call on numbers.
        let closed = unsafe {
            libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, last, libc::CLOSE_RANGE_CLOEXEC)
        };
        at("close what is not the instance's", checked(closed))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        at("mount /proc", mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>))?;
        // SAFETY: the handlers are those of this process alone. All zeros is the default one, with an empty mask. The
        // system refuses to change some signals, which have no handlers. The arrays end with a null, and they and
        // their words are alive: the caller waits.
        unsafe {
            let default: libc::sigaction = std::mem::zeroed();
            for signal in 1..=libc::SIGRTMAX() {
                libc::sigaction(signal, &raw const default, null_mut());
            }
            libc::sigprocmask(libc::SIG_SETMASK, &raw const default.sa_mask, null_mut());
            libc::execve(self.argv[0], self.argv.as_ptr(), self.env.as_ptr());
        }
        Err(("run the program", io::Error::last_os_error()))
    }
}
