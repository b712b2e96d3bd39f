//! Waiting for a disk without the interpreter: `xSync` of an open SQLite file, in a thread that never asks for Python's lock.
//!
//! Beside Raft and not of it; it is here because it is the other thing that Python cannot do. A Python thread that waits for fdatasync
//! wakes up to ask for the interpreter's lock, which the event loop holds: measured, eight switches between threads for each commit,
//! and a tenth of all CPU. This thread is told by a channel, and tells by a byte in a socket that the event loop watches.
//!
//! A file is named by the address of its `sqlite3_file` (`SQLITE_FCNTL_JOURNAL_POINTER` gives that of a WAL), so that whatever VFS a
//! database was opened with is asked to sync, as SQLite would ask it (https://sqlite.org/c3ref/io_methods.html).

use std::collections::VecDeque;
use std::io::{Error, Read, Write};
use std::os::fd::AsRawFd;
use std::os::raw::{c_int, c_void};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// `SQLITE_SYNC_NORMAL`: what SQLite passes for a WAL.
const WAL_SYNC: c_int = 0x02;
/// `EIO`, for a VFS that says that it failed and not why.
const NO_REASON: i32 = 5;

/// The beginning of `sqlite3_io_methods`, as of its first version.
#[repr(C)]
struct Methods {
    version: c_int,
    close: *const c_void,
    read: *const c_void,
    write: *const c_void,
    truncate: *const c_void,
    sync: Option<unsafe extern "C" fn(*mut c_void, c_int) -> c_int>,
}

#[repr(C)]
struct File {
    methods: *const Methods,
}

/// How a sync went: SQLite's code, and the system's error number if it is not 0.
type Outcome = (i32, i32);

/// # Safety
/// `address` is that of a `sqlite3_file` that stays open until this returns.
unsafe fn sync_at(address: usize) -> Outcome {
    let file = address as *mut File;
    let methods = (*file).methods;
    if methods.is_null() {
        return (1, NO_REASON);
    }
    match (*methods).sync {
        None => (1, NO_REASON),
        Some(sync) => match sync(file.cast(), WAL_SYNC) {
            0 => (0, 0),
            code => (
                code,
                Error::last_os_error().raw_os_error().unwrap_or(NO_REASON),
            ),
        },
    }
}

fn failure((code, number): Outcome) -> Option<PyErr> {
    if code == 0 {
        return None;
    }
    let number = if number == 0 { NO_REASON } else { number };
    let text = format!("{} (SQLite code {code})", Error::from_raw_os_error(number));
    Some(PyOSError::new_err((number, text)))
}

fn checked(file: usize) -> PyResult<usize> {
    if file == 0 || file % std::mem::align_of::<File>() != 0 {
        return Err(PyValueError::new_err("this is no address of an open file"));
    }
    Ok(file)
}

/// Syncs in this thread, without Python's lock; see `_core.pyi`.
#[pyfunction]
pub fn sync_file(py: Python<'_>, file: usize) -> PyResult<()> {
    let file = checked(file)?;
    // SAFETY: the caller keeps the file open.
    let outcome = py.detach(|| unsafe { sync_at(file) });
    // A VFS in Python leaves its exception behind.
    match PyErr::take(py).or_else(|| failure(outcome)) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// A thread that syncs; see `_core.pyi`.
#[pyclass(module = "context_node.raft._core")]
pub struct FileSync {
    wanted: Option<Sender<usize>>,
    outcomes: Arc<Mutex<VecDeque<Outcome>>>,
    told: UnixStream,
    thread: Option<JoinHandle<()>>,
}

#[pymethods]
impl FileSync {
    #[new]
    fn new() -> PyResult<Self> {
        let (told, mut tell) = UnixStream::pair()?;
        told.set_nonblocking(true)?;
        let (wanted, next) = channel::<usize>();
        let outcomes = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&outcomes);
        let work = move || {
            while let Ok(file) = next.recv() {
                // SAFETY: whoever asks keeps the file open until it was told.
                let outcome = unsafe { sync_at(file) };
                kept.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_back(outcome);
                if tell.write_all(&[0]).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("sync".into())
            .spawn(work)?;
        Ok(FileSync {
            wanted: Some(wanted),
            outcomes,
            told,
            thread: Some(thread),
        })
    }

    fn fileno(&self) -> i32 {
        self.told.as_raw_fd()
    }

    fn submit(&self, file: usize) -> PyResult<()> {
        let file = checked(file)?;
        let sent = self
            .wanted
            .as_ref()
            .is_some_and(|wanted| wanted.send(file).is_ok());
        if sent {
            Ok(())
        } else {
            Err(PyRuntimeError::new_err("this thread was ended"))
        }
    }

    fn take(&mut self) -> Vec<Option<PyErr>> {
        // Before the look: what comes after it wakes the event loop once more.
        let _ = self.told.read(&mut [0; 64]);
        self.outcomes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
            .map(failure)
            .collect()
    }

    fn close(&mut self, py: Python<'_>) {
        self.wanted = None;
        if let Some(thread) = self.thread.take() {
            // A VFS in Python may need the interpreter to finish.
            let _ = py.detach(|| thread.join());
        }
    }
}
