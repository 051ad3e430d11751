//! Makes one instance.
//!
//! Two threads take part. The first one holds the instance's lock, keeps the record and undoes a failure. The second
//! one unshares namespaces, builds the root, starts the first program and ends: nothing of it can be used afterwards.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    os::fd::AsFd,
    os::unix::fs::OpenOptionsExt,
    thread,
};

use cloud_providers::{ConsoleTail, Error, ErrorKind, Instance, OpContext, Result, Role, tags};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::sethostname,
};

use crate::{
    cgroups::Groups,
    config::Programs,
    error::{io_error, path_error},
    host::Host,
    lock::{FileLock, NetworkLock},
    mounts::{self, Inside},
    network::{LinkTag, Network, pick_address},
    process::{ProcessId, remember_child},
    remove,
    spawn::{Init, spawn},
    state::{Found, Phase, Plan, Record},
};

/// Bytes of the console that an error quotes.
const CONSOLE_TAIL: usize = 2048;
/// The most that is read of a console.
const CONSOLE_MOST: u64 = 4 << 20;

/// What is there of a token before its creation begins.
#[derive(Debug)]
pub(crate) enum Existing {
    /// The instance, made by an earlier call with the same request.
    Instance(Instance),
    /// The remains of a creation that was cut off.
    Remains,
    /// Nothing.
    Nothing,
}

/// Looks for what the token has already, and for whoever holds its name.
pub(crate) fn look(host: &Host, plan: &Plan) -> Result<Existing> {
    let conflict = |message: &str| {
        Error::new(ErrorKind::Conflict, message).with("instance", &plan.id).with("token", &plan.token)
    };
    let record = match host.data.read(&plan.id) {
        Found::Nothing => {
            check_name(host, plan)?;
            return Ok(Existing::Nothing);
        }
        Found::Damaged(error) => return Err(error),
        Found::Record(record) => record,
    };
    if record.token != plan.token {
        return Err(conflict("the id of this token is another token's").with("other token", &record.token));
    }
    if record.fingerprint != plan.fingerprint {
        return Err(conflict("the token was used with another request"));
    }
    if record.phase == Phase::Creating {
        return Ok(Existing::Remains);
    }
    let alive = match &record.process {
        Some(process) => process.is_alive()?,
        None => false,
    };
    if alive {
        return Ok(Existing::Instance(record.instance()));
    }
    Err(Error::new(ErrorKind::NotFound, "the instance of this token has ended")
        .with("instance", &plan.id)
        .with("console", console_tail(host, &plan.id))
        .with("mend", "delete it, or ask with the next attempt"))
}

/// Refuses a name that another token's instance has.
fn check_name(host: &Host, plan: &Plan) -> Result<()> {
    for id in host.data.ids()?.iter().filter(|id| **id != plan.id) {
        if let Found::Record(other) = host.data.read(id)
            && other.name == plan.name
        {
            return Err(Error::new(ErrorKind::Conflict, "another instance has the name")
                .with("name", &plan.name)
                .with("instance", &other.id)
                .with("its token", &other.token));
        }
    }
    Ok(())
}

/// Makes the instance, or undoes what was made of it.
pub(crate) fn launch(host: &Host, ctx: &OpContext, plan: &Plan, programs: &Programs) -> Result<Instance> {
    if let Existing::Remains = look(host, plan)? {
        remove::remove(host, &plan.id)?;
    }
    run(host, ctx, plan, programs).map_err(|error| match remove::remove(host, &plan.id) {
        Ok(()) => error,
        Err(undo) => {
            tracing::error!(
                provider = crate::NAME,
                instance_id = plan.id,
                error = undo.report(),
                "undoing failed"
            );
            error.with_leftovers(undo.leftovers().to_vec())
        }
    })
}

fn run(host: &Host, ctx: &OpContext, plan: &Plan, programs: &Programs) -> Result<Instance> {
    ctx.check()?;
    let network = Network::open()?;
    let launched = thread::scope(|scope| {
        thread::Builder::new()
            .name("local-launch".into())
            .spawn_scoped(scope, || start(host, ctx, plan, programs, network))
            .map_err(|e| io_error("cannot start a thread", e))?
            .join()
            .unwrap_or_else(|_| Err(Error::internal("the thread that makes the instance panicked")))
    });
    let (mut record, pid) = launched?;
    let process = ProcessId::of(pid)?;
    remember_child(host.data.marker(&plan.id), process.clone());
    record.process = Some(process.clone());
    record.phase = Phase::Running;
    host.step("keep the number of the process", || host.data.write(&record))?;
    ctx.check()?;
    let ended = match process.open()? {
        Some(process) => process.ends_within(host.config.boot_grace),
        None => true,
    };
    if ended {
        return Err(Error::internal("the instance's first program ended at once")
            .with("program", programs.init.display())
            .with("console", console_tail(host, &plan.id)));
    }
    ctx.check()?;
    Ok(record.instance())
}

/// Makes namespaces, record, link and root, and starts the first program. Runs on a thread of its own.
fn start(
    host: &Host,
    ctx: &OpContext,
    plan: &Plan,
    programs: &Programs,
    network: Network,
) -> Result<(Record, i32)> {
    // Locks the provider's network namespace, so it comes before this thread leaves it.
    let (record, console) = {
        let _records = FileLock::take_blocking(ctx, &host.data.records_lock_path())?;
        let _network = NetworkLock::take_blocking(ctx)?;
        reserve(host, ctx, plan, network)?
    };
    host.step("configure the guest's network", || {
        Network::open()?.configure_guest(&host.config, record.address)
    })?;
    ctx.check()?;
    sethostname(&plan.name)
        .map_err(|e| io_error("cannot set the instance's host name", e).with("name", &plan.name))?;
    let mount_point = host.data.mount_point(&plan.id);
    let groups = Groups::make(&host.data.group(&plan.id)).unwrap_or_else(|error| {
        // Only some agents need them.
        tracing::warn!(
            provider = crate::NAME,
            instance_id = plan.id,
            error = error.report(),
            "the instance gets no control groups"
        );
        Groups::default()
    });
    let inside = host.step("build the root", || {
        mounts::enter_root(&host.config, programs, plan, &mount_point, host.data.root(), &groups)
    })?;
    ctx.check()?;
    let pid = host.step("start the first program", || spawn(init(host, plan, inside, console), &groups))?;
    Ok((record, pid))
}

/// Gives the instance its address, record, namespaces and link. Called under the locks of records and network.
fn reserve(host: &Host, ctx: &OpContext, plan: &Plan, mut network: Network) -> Result<(Record, File)> {
    check_name(host, plan)?;
    let links = network.links()?;
    let mut used: BTreeSet<_> = links.iter().filter_map(|l| Some(l.tag()?.address)).collect();
    for id in host.data.ids()? {
        match host.data.read(&id) {
            Found::Record(other) => drop(used.insert(other.address)),
            // Its address is still known while its link is there.
            Found::Damaged(_) | Found::Nothing => {}
        }
    }
    let address = host.step("pick an address", || pick_address(&host.config, &used, plan.wanted_address))?;
    network.check(&host.config, &links)?;
    let record = plan.record(address);
    host.step("make the record", || host.data.create(&record))?;
    let path = host.data.console(&plan.id);
    let console = File::options()
        .create_new(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| path_error("cannot make the console log", &path, e))?;
    ctx.check()?;

    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID;
    host.step("make the namespaces", || {
        unshare(namespaces).map_err(|e| io_error("cannot make the instance's namespaces", e))
    })?;
    let netns = "/proc/thread-self/ns/net";
    let netns = File::open(netns).map_err(|e| io_error("cannot open the instance's network namespace", e))?;
    let bridge = host.step("make the bridge", || network.ensure_bridge(&host.config, &links))?;
    let tag = LinkTag {
        folder: host.data.hash.clone(),
        id: plan.id.clone(),
        address,
        scope: tags::encode_value(&plan.token.scope.to_string()),
        token: plan.token.tag_value(),
    };
    host.step("make the link", || network.attach(&plan.interface, bridge, netns.as_fd(), &tag))?;
    Ok((record, console))
}

fn init(host: &Host, plan: &Plan, inside: Inside, console: File) -> Init {
    let mut args = Vec::new();
    let plain = plan.role == Role::Plain;
    if plain {
        // First, so that a program with several parts finds the name of the part where it looks for it.
        args.extend(host.config.machine_args.iter().cloned());
    }
    if inside.guest_dir {
        args.extend(["--guest-dir".to_owned(), crate::GUEST_DIR.to_owned()]);
    }
    if let Some(agent) = inside.agent {
        args.extend(["--agent".to_owned(), agent]);
    }
    args.extend(["--user-data-dir".to_owned(), crate::USER_DATA_DIR.to_owned()]);
    if !plain {
        args.extend(host.config.init_args.iter().cloned());
    }
    let marker = host.data.marker(&plan.id);
    let (key, value) = marker.split_once('=').unwrap_or_default();
    let env = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/root"),
        ("TERM", "linux"),
        (key, value),
    ];
    Init { program: inside.init, args, env: env.map(|(k, v)| (k.to_owned(), v.to_owned())).into(), console }
}

/// Returns the end of an instance's console.
pub(crate) fn console(host: &Host, id: &str, limit: usize) -> Result<ConsoleTail> {
    let path = host.data.console(id);
    let failed = |e: std::io::Error| path_error("cannot read the console log", &path, e);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        // An instance that never came to its first program has none.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(ConsoleTail::default()),
        Err(error) => return Err(failed(error)),
    };
    // A guest may write without end: only the last part is read, with room for what is taken out of it.
    let room = u64::try_from(limit).unwrap_or(u64::MAX).saturating_mul(2).min(CONSOLE_MOST);
    let all = file.metadata().map_err(failed)?.len();
    let skipped = all.saturating_sub(room);
    file.seek(SeekFrom::Start(skipped)).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(room).read_to_end(&mut bytes).map_err(failed)?;
    let tail = ConsoleTail::new(&bytes, limit);
    Ok(if skipped > 0 { tail.with_more_before() } else { tail })
}

/// Returns the last lines of an instance's console.
fn console_tail(host: &Host, id: &str) -> String {
    let tail = console(host, id, CONSOLE_TAIL).unwrap_or_default();
    let tail = tail.text().trim();
    if tail.is_empty() { "empty".into() } else { tail.into() }
}
