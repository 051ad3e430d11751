//! Writes the files of an installation into a folder: `cargo run -p peerpod-api --example manifests -- <folder>
//! [<namespace> [<image>]]`.

use std::path::PathBuf;
use std::process::ExitCode;

use peerpod_api::{install, names};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(folder) = args.next().map(PathBuf::from) else {
        eprintln!("usage: manifests <folder> [<namespace> [<image>]]");
        return ExitCode::FAILURE;
    };
    let namespace = args.next().unwrap_or(names::DEFAULT_NAMESPACE.to_owned());
    let image = args.next().unwrap_or(names::CONTROLLER.to_owned());
    for file in install::files(&namespace, &image) {
        let path = folder.join(file.name);
        if let Err(error) = std::fs::write(&path, file.text()) {
            eprintln!("cannot write {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        println!("{}", path.display());
    }
    ExitCode::SUCCESS
}
