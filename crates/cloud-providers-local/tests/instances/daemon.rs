//! A daemon that makes an instance and is killed.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::exit,
};

use anyhow::Result;
use cloud_providers::OpContext;

use crate::setup::{provider, request};

/// The first argument that asks for this part.
pub(crate) const ROLE: &str = "as-daemon";

/// Makes the instance `one` with the options in the file given, says so on standard output, and waits to be killed.
pub(crate) fn main(args: &[String]) -> ! {
    let result = run(Path::new(&args[0]));
    eprintln!("the daemon ended: {result:?}");
    exit(1)
}

fn run(options: &Path) -> Result<()> {
    let text = std::fs::read(options)?;
    let env: Vec<(String, String)> = serde_json::from_slice(&text)?;
    let env: Vec<(&'static str, String)> = env.into_iter().map(|(k, v)| (&*k.leak(), v)).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let provider = provider(&env).await?;
        println!("begin");
        let instance = provider.create_instance(&OpContext::new(), &request("one")).await?;
        println!("made {}", instance.id);
        std::future::pending::<()>().await;
        Ok(())
    })
}

/// Writes the options where the daemon reads them.
pub(crate) fn write_options(dir: &Path, env: &[(&'static str, String)]) -> Result<PathBuf> {
    let path = dir.join("options.json");
    File::create(&path)?.write_all(&serde_json::to_vec(env)?)?;
    Ok(path)
}
