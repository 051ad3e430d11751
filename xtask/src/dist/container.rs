//! Contexts from which images of containers are built: an archive with a Containerfile and everything that the image
//! contains. Nothing is downloaded to build one, and there is no shell in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::build::Built;
use super::programs::{Image, Program};
use crate::context::Context;
use crate::podvm::elf::Elf;

/// Where programs are in an image.
const BIN: &str = "usr/local/bin";
/// Folders in which a dynamic loader without a cache looks, as Debian builds it.
const LIBRARIES: [&str; 4] = ["lib/{arch}-linux-gnu", "usr/lib/{arch}-linux-gnu", "lib", "usr/lib"];
const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";

/// The content of a context by path.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    content: Option<Vec<u8>>,
}

impl Archive {
    fn folder(&mut self, path: &str, mode: u32) {
        self.entries.entry(path.to_owned()).or_insert(Entry { mode, content: None });
    }

    /// Adds a file and the folders above it.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) {
        for (at, _) in path.match_indices('/') {
            self.folder(&path[..at], 0o755);
        }
        self.entries.insert(path.to_owned(), Entry { mode, content: Some(content.into()) });
    }

    /// Writes everything with one time and owner root: the same content gives the same bytes.
    ///
    /// # Errors
    ///
    /// When a name is too long for the format.
    pub(crate) fn tar(&self, epoch: u64) -> Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let content = entry.content.as_deref().unwrap_or_default();
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(if entry.content.is_some() {
                tar::EntryType::Regular
            } else {
                tar::EntryType::Directory
            });
            header.set_mode(entry.mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(epoch);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, content).with_context(|| format!("cannot add {path}"))?;
        }
        Ok(builder.into_inner()?)
    }
}

/// Collects what an image contains: its programs, their libraries, users and a folder for temporary files.
///
/// # Errors
///
/// When a library that a program needs is not on this machine.
pub(crate) fn context(
    image: &Image,
    version: &str,
    commit: &str,
    inside: &[(Program, Built)],
) -> Result<Archive> {
    let mut archive = Archive::default();
    archive.file("Containerfile", 0o644, containerfile(image, version, commit));
    archive.file("rootfs/etc/passwd", 0o644, PASSWD);
    archive.file("rootfs/etc/group", 0o644, GROUP);
    archive.folder("rootfs/tmp", 0o1777);
    for (program, built) in inside {
        let bytes =
            std::fs::read(&built.path).with_context(|| format!("cannot read {}", built.path.display()))?;
        libraries(&mut archive, program.name, &bytes)?;
        archive.file(&format!("rootfs/{BIN}/{}", program.name), 0o755, bytes);
    }
    Ok(archive)
}

fn containerfile(image: &Image, version: &str, commit: &str) -> String {
    let why: Vec<String> = image.why.iter().map(|line| format!("# {line}\n")).collect();
    format!(
        "# Builds the image: podman build -f Containerfile -t {name}:{version} .\n\
         # Everything in it lies in rootfs; there is no shell and no package manager.\n\
         FROM scratch\n\
         COPY rootfs/ /\n\
         LABEL org.opencontainers.image.title=\"{name}\" \\\n      \
         org.opencontainers.image.version=\"{version}\" \\\n      \
         org.opencontainers.image.revision=\"{commit}\" \\\n      \
         org.opencontainers.image.licenses=\"Apache-2.0\"\n\
         {why}USER {user}\n\
         ENTRYPOINT [\"/{BIN}/{name}\"]\n",
        name = image.name,
        why = why.concat(),
        user = image.user,
    )
}

/// Adds the loader and the libraries that a program needs or loads later, and those that these need.
fn libraries(archive: &mut Archive, name: &str, bytes: &[u8]) -> Result<()> {
    let mut open = vec![(name.to_owned(), bytes.to_vec())];
    let mut is_program = true;
    while let Some((name, bytes)) = open.pop() {
        let mut needs = Elf::parse(&bytes).and_then(|elf| elf.needs()).with_context(|| name.clone())?;
        if let Some(loader) = &needs.loader {
            let content = std::fs::read(loader).with_context(|| format!("cannot read {loader}"))?;
            archive.file(&format!("rootfs/{}", loader.trim_start_matches('/')), 0o755, content);
        }
        // A library does without those that it may load.
        if std::mem::take(&mut is_program) {
            needs.libraries.append(&mut needs.loads);
        }
        for library in needs.libraries {
            let place = place_of(&library).with_context(|| format!("{name} needs {library}"))?;
            let path = format!("rootfs/{}", place.display());
            if !archive.entries.contains_key(&path) {
                let content = std::fs::read(Path::new("/").join(&place))
                    .with_context(|| format!("cannot read /{}", place.display()))?;
                open.push((library, content.clone()));
                archive.file(&path, 0o755, content);
            }
        }
    }
    Ok(())
}

fn place_of(library: &str) -> Result<PathBuf> {
    let folders = LIBRARIES.map(|folder| folder.replace("{arch}", std::env::consts::ARCH));
    let mut places = folders.iter().map(|folder| Path::new(folder).join(library));
    match places.find(|place| Path::new("/").join(place).is_file()) {
        Some(place) => Ok(place),
        None => bail!("this machine has no {library} in {}", folders.join(", ")),
    }
}

/// Unpacks a context and runs the version command of each program with the image's content as its root, and as its user.
///
/// # Errors
///
/// When a program does not run there, or there is anything that could be a shell.
pub(crate) fn try_out(
    context: &Context,
    tar: &[u8],
    image: &Image,
    programs: &[Program],
) -> Result<Vec<String>> {
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let mut archive = tar::Archive::new(tar);
    archive.set_preserve_permissions(true);
    archive.unpack(folder.path()).context("the context does not unpack")?;
    let rootfs = folder.path().join("rootfs");
    // The folder of the image is its root, which every user of it may enter.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    ensure!(!rootfs.join("bin").exists(), "an image has no folder of shells");
    let mut said = Vec::new();
    for program in programs {
        let chroot = context.find_program("chroot").context("there is no program chroot")?;
        let run = context.program(chroot).env_clear().arg(format!("--userspec={}", image.user)).arg(&rootfs);
        let run = run.arg(format!("/{BIN}/{}", program.name)).arg(program.version);
        let (code, stdout, stderr) = run.answer(Duration::from_secs(60))?;
        ensure!(
            code == Some(0),
            "{} does not run with nothing but its image: exit code {code:?}: {}",
            program.name,
            stderr.trim()
        );
        said.push(stdout.lines().next().unwrap_or_default().to_owned());
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podvm::elf::Needs;

    fn image() -> Image {
        Image { name: "true", programs: &["true"], user: "65532:65532", why: &["It needs", "nothing."] }
    }

    fn program() -> Program {
        Program { name: "true", package: "coreutils", version: "--version" }
    }

    fn tar_of(path: &str) -> Result<Vec<u8>> {
        let built = Built { path: path.into(), needs: Needs::default() };
        context(&image(), "1.2.3", "abc", &[(program(), built)])?.tar(1_000_000_000)
    }

    #[test]
    fn a_dynamic_program_runs_with_nothing_but_its_image() {
        let tar = tar_of("/bin/true").unwrap();
        let context = Context::from_process().unwrap();
        let said = try_out(&context, &tar, &image(), &[program()]).unwrap();
        assert!(said[0].starts_with("true"), "{said:?}");
    }

    #[test]
    fn a_program_that_does_not_run_there_is_an_error() {
        let tar = tar_of("/bin/false").unwrap();
        let mut wrong = program();
        wrong.version = "no such argument";
        let context = Context::from_process().unwrap();
        let error = try_out(&context, &tar, &image(), &[wrong]).unwrap_err().to_string();
        assert!(error.contains("exit code Some(1)"), "{error}");
    }

    #[test]
    fn the_same_content_gives_the_same_bytes_with_one_time_and_owner() {
        let tar = tar_of("/bin/true").unwrap();
        assert!(tar == tar_of("/bin/true").unwrap());
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut paths = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap()), (1_000_000_000, 0));
            paths.push(entry.path().unwrap().to_string_lossy().into_owned());
        }
        assert_eq!(paths[0], "Containerfile");
        assert!(
            paths.contains(&"rootfs/tmp/".to_owned()) || paths.contains(&"rootfs/tmp".to_owned()),
            "{paths:?}"
        );
        assert!(paths.iter().any(|path| path.contains("libc.so")), "{paths:?}");
    }

    #[test]
    fn a_containerfile_has_no_base_and_names_its_user_with_the_reason() {
        let text = containerfile(&image(), "1.2.3", "abc");
        assert!(text.contains("\nFROM scratch\n"), "{text}");
        assert!(text.contains("# It needs\n# nothing.\nUSER 65532:65532\n"), "{text}");
        assert!(text.ends_with("ENTRYPOINT [\"/usr/local/bin/true\"]\n"), "{text}");
    }
}
