//! The transfer of files, for hosts that have no program for it. It runs with the rights of whoever logged in.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata, OpenOptions, Permissions, ReadDir},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, UNIX_EPOCH},
};

use russh_sftp::{
    protocol::{Attrs, Data, File as Entry, FileAttributes, Handle, Name, OpenFlags, Status, StatusCode},
    server::{self, Handler, StatusReply},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Join, ReadBuf, Stdin, Stdout},
    sync::oneshot,
};

/// The most bytes of one answer, as many as clients ask for.
const MOST: u32 = 256 << 10;
/// Names in one answer.
const NAMES: usize = 100;
/// Handles of one client; each may be an open file.
const HANDLES: usize = 200;

/// Serves on standard input and output until the client is gone.
pub(super) fn run() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))?;
    runtime.block_on(async {
        let (done, ended) = oneshot::channel();
        let stream = Stream { inner: tokio::io::join(tokio::io::stdin(), tokio::io::stdout()), _done: done };
        server::run(stream, Files::default()).await;
        // The server lets go of its stream at the end of the input.
        let _ = ended.await;
    });
    // A read of standard input may still be under way.
    runtime.shutdown_background();
    Ok(())
}

/// Standard input and output, whose end can be waited for.
struct Stream {
    inner: Join<Stdin, Stdout>,
    _done: oneshot::Sender<()>,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// What a client has open.
#[derive(Default)]
struct Files {
    next: u64,
    open: HashMap<String, Open>,
}

enum Open {
    File(File),
    Folder(PathBuf, ReadDir),
}

/// A refusal, with the words of the system.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => StatusCode::NoSuchFile,
            io::ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
            _ => StatusCode::Failure,
        };
        Self(code, error.to_string())
    }
}

impl From<Refusal> for StatusReply {
    fn from(refusal: Refusal) -> Self {
        StatusReply { status_code: refusal.0, error_message: Some(refusal.1), language_tag: None }
    }
}

fn end() -> Refusal {
    Refusal(StatusCode::Eof, "end".into())
}

fn done(id: u32) -> Status {
    Status { id, status_code: StatusCode::Ok, error_message: "done".into(), language_tag: "en".into() }
}

impl Files {
    fn keep(&mut self, id: u32, open: Open) -> Result<Handle, Refusal> {
        if self.open.len() >= HANDLES {
            return Err(Refusal(StatusCode::Failure, "too many open files".into()));
        }
        self.next += 1;
        let handle = self.next.to_string();
        self.open.insert(handle.clone(), open);
        Ok(Handle { id, handle })
    }

    fn file(&self, handle: &str) -> Result<&File, Refusal> {
        match self.open.get(handle) {
            Some(Open::File(file)) => Ok(file),
            _ => Err(Refusal(StatusCode::Failure, "no such handle of a file".into())),
        }
    }
}

fn attributes(id: u32, metadata: &Metadata) -> Attrs {
    Attrs { id, attrs: FileAttributes::from(metadata) }
}

/// Sets what the client named.
fn set(path: &Path, attrs: &FileAttributes) -> io::Result<()> {
    if let Some(size) = attrs.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if attrs.uid.is_some() || attrs.gid.is_some() {
        chown(path, attrs.uid, attrs.gid)?;
    }
    if let Some(mode) = attrs.permissions {
        fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
    }
    times(&OpenOptions::new().read(true).open(path), attrs)
}

fn times(file: &io::Result<File>, attrs: &FileAttributes) -> io::Result<()> {
    let (Some(accessed), Some(modified)) = (attrs.atime, attrs.mtime) else { return Ok(()) };
    let at = |seconds: u32| UNIX_EPOCH + Duration::from_secs(u64::from(seconds));
    match file {
        Ok(file) => {
            file.set_times(fs::FileTimes::new().set_accessed(at(accessed)).set_modified(at(modified)))
        }
        // What cannot be read keeps its times.
        Err(_) => Ok(()),
    }
}

fn text(path: &Path) -> Result<String, Refusal> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Refusal(StatusCode::Failure, "the name is not UTF-8".into()))
}

/// Returns the absolute path; what does not exist yet stands under what does.
fn absolute(path: &str) -> io::Result<PathBuf> {
    let path = Path::new(if path.is_empty() { "." } else { path });
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Ok(real), _, _) => Ok(real),
        (Err(_), Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(fs::canonicalize(parent)?.join(name))
        }
        (Err(error), _, _) => Err(error),
    }
}

impl Handler for Files {
    type Error = Refusal;

    fn unimplemented(&self) -> Refusal {
        Refusal(StatusCode::OpUnsupported, "not supported".into())
    }

    async fn open(
        &mut self,
        id: u32,
        filename: String,
        flags: OpenFlags,
        attrs: FileAttributes,
    ) -> Result<Handle, Refusal> {
        let mut options = OpenOptions::from(flags);
        options.mode(attrs.permissions.unwrap_or(0o666) & 0o7777);
        let file = options.open(filename)?;
        self.keep(id, Open::File(file))
    }

    async fn close(&mut self, id: u32, handle: String) -> Result<Status, Refusal> {
        match self.open.remove(&handle) {
            Some(_) => Ok(done(id)),
            None => Err(Refusal(StatusCode::Failure, "no such handle".into())),
        }
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, len: u32) -> Result<Data, Refusal> {
        let mut data = vec![0; len.min(MOST) as usize];
        match self.file(&handle)?.read_at(&mut data, offset)? {
            0 => Err(end()),
            n => {
                data.truncate(n);
                Ok(Data { id, data })
            }
        }
    }

    async fn write(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<Status, Refusal> {
        self.file(&handle)?.write_all_at(&data, offset)?;
        Ok(done(id))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Result<Attrs, Refusal> {
        Ok(attributes(id, &fs::symlink_metadata(path)?))
    }

    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, Refusal> {
        Ok(attributes(id, &fs::metadata(path)?))
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Result<Attrs, Refusal> {
        Ok(attributes(id, &self.file(&handle)?.metadata()?))
    }

    async fn setstat(&mut self, id: u32, path: String, attrs: FileAttributes) -> Result<Status, Refusal> {
        set(Path::new(&path), &attrs)?;
        Ok(done(id))
    }

    async fn fsetstat(&mut self, id: u32, handle: String, attrs: FileAttributes) -> Result<Status, Refusal> {
        let file = self.file(&handle)?;
        if let Some(size) = attrs.size {
            file.set_len(size)?;
        }
        if attrs.uid.is_some() || attrs.gid.is_some() {
            std::os::unix::fs::fchown(file, attrs.uid, attrs.gid)?;
        }
        if let Some(mode) = attrs.permissions {
            file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
        }
        times(&file.try_clone(), &attrs)?;
        Ok(done(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Result<Handle, Refusal> {
        let entries = fs::read_dir(&path)?;
        self.keep(id, Open::Folder(path.into(), entries))
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Result<Name, Refusal> {
        let Some(Open::Folder(path, entries)) = self.open.get_mut(&handle) else {
            return Err(Refusal(StatusCode::Failure, "no such handle of a folder".into()));
        };
        let mut files = Vec::new();
        for entry in entries.by_ref().take(NAMES) {
            let entry = entry?;
            // A name in another encoding cannot be shown; what vanished meanwhile is not there.
            let (Some(name), Ok(metadata)) = (
                entry.file_name().to_str().map(str::to_owned),
                path.join(entry.file_name()).symlink_metadata(),
            ) else {
                continue;
            };
            files.push(Entry::new(name, FileAttributes::from(&metadata)));
        }
        if files.is_empty() { Err(end()) } else { Ok(Name { id, files }) }
    }

    async fn remove(&mut self, id: u32, filename: String) -> Result<Status, Refusal> {
        fs::remove_file(filename)?;
        Ok(done(id))
    }

    async fn mkdir(&mut self, id: u32, path: String, attrs: FileAttributes) -> Result<Status, Refusal> {
        fs::create_dir(&path)?;
        if let Some(mode) = attrs.permissions {
            fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777))?;
        }
        Ok(done(id))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Result<Status, Refusal> {
        fs::remove_dir(path)?;
        Ok(done(id))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Result<Name, Refusal> {
        Ok(Name { id, files: vec![Entry::dummy(text(&absolute(&path)?)?)] })
    }

    async fn rename(&mut self, id: u32, from: String, to: String) -> Result<Status, Refusal> {
        // This version of the protocol never replaces.
        if fs::symlink_metadata(&to).is_ok() {
            return Err(Refusal(StatusCode::Failure, "the name is taken".into()));
        }
        fs::rename(from, to)?;
        Ok(done(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Result<Name, Refusal> {
        Ok(Name { id, files: vec![Entry::dummy(text(&fs::read_link(path)?)?)] })
    }

    async fn symlink(&mut self, id: u32, first: String, second: String) -> Result<Status, Refusal> {
        // OpenSSH sends what the link leads to first, other than the draft of the protocol.
        symlink(first, second)?;
        Ok(done(id))
    }
}
