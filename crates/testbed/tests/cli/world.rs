//! A testbed whose machines are files, and whose steps can be told to fail, to wait, or to kill the program.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use testbed::{
    Context, Environment, Error, ErrorKind, Event, Features, Host, Key, MachineStatus, Network, Obtained,
    Plan, ProviderConfig, Reservation, Result, Testbed, async_trait,
};

const KEYS: &[Key] = &[
    Key::text("world", "The folder with the machines").required(),
    Key::text("password", "A password that nobody may see").secret(),
];

testbed::register_testbed! {
    name: "scripted",
    aliases: &["played"],
    summary: "machines that are files",
    keys: KEYS,
    new: |config| Box::pin(async move { Ok(Arc::new(World::of(config)) as Arc<dyn Testbed>) }),
}

#[derive(Debug)]
struct World {
    dir: PathBuf,
    password: String,
}

impl World {
    fn of(config: &ProviderConfig) -> Self {
        let text = |key: &str| config.extra.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        Self { dir: text("world").into(), password: text("password") }
    }

    fn machines(&self, experiment: &str) -> PathBuf {
        self.dir.join("machines").join(experiment)
    }

    /// A step of a call: told to the log, and the place where a test meddles.
    async fn step(&self, ctx: &Context, name: &str) -> Result<()> {
        let mut log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        writeln!(log, "{name}").unwrap();
        let word = |file: &str| fs::read_to_string(self.dir.join(file)).unwrap_or_default().trim().to_owned();
        if word("kill-at") == name {
            let _ = fs::remove_file(self.dir.join("kill-at"));
            nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        if word("fail-at") == name {
            // The password is in the answer, as clouds like to quote what they were sent.
            return Err(Error::new(ErrorKind::Permission, format!("no, {}, not {name}", self.password)));
        }
        if word("full-at") == name {
            let kind = ErrorKind::Capacity { zone: None, instance_type: None };
            return Err(Error::new(kind, "no room"));
        }
        if word("hang-at") == name {
            fs::write(self.dir.join("hangs"), name).unwrap();
            // Deaf to the cancellation, too.
            std::future::pending::<()>().await;
        }
        if word("wait-at") == name {
            fs::write(self.dir.join("waits"), name).unwrap();
            ctx.op.sleep(Duration::from_secs(120)).await?;
        }
        ctx.op.check()
    }

    async fn make(&self, ctx: &Context, reservation: &Reservation) -> Result<Obtained> {
        let folder = self.machines(&reservation.experiment);
        fs::create_dir_all(&folder).unwrap();
        let mut made = BTreeSet::new();
        let mut hosts = Vec::new();
        let result = async {
            for machine in &reservation.machines {
                let file = folder.join(&machine.name);
                if file.exists() && !ctx.force {
                    ctx.tell(&machine.name, Event::Found);
                } else {
                    ctx.tell(&machine.name, Event::Creating);
                    self.step(ctx, &format!("create:{}", machine.name)).await?;
                    let count = self.dir.join("count");
                    let next = fs::read_to_string(&count).ok().and_then(|n| n.parse().ok()).unwrap_or(0) + 1;
                    fs::write(&count, next.to_string()).unwrap();
                    fs::write(&file, format!("id-{next}")).unwrap();
                    made.insert(machine.name.clone());
                    self.step(ctx, &format!("created:{}", machine.name)).await?;
                    ctx.keep.keep(&machine.name, Some(next.into())).await?;
                    ctx.tell(&machine.name, Event::Created { address: "192.0.2.1".into() });
                }
                let id = fs::read_to_string(&file).unwrap();
                let mut host = Host::new(&machine.name, format!("192.0.2.{}", hosts.len() + 1), id);
                host.addresses.push(host.address.parse().unwrap());
                hosts.push(host);
            }
            Ok(())
        };
        let result: Result<()> = result.await;
        if let Err(error) = result {
            for name in made {
                fs::remove_file(folder.join(name)).unwrap();
            }
            return Err(error);
        }
        let mut obtained = Obtained::new(hosts, reservation.networks.iter().map(Network::of).collect());
        obtained.made = made;
        Ok(obtained)
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[async_trait]
impl Testbed for World {
    fn features(&self) -> Features {
        let mut features = Features::default();
        (features.status, features.proves_empty, features.makes_machines) = (true, true, true);
        features
    }

    async fn init(&self, ctx: &Context, reservation: &Reservation) -> Result<Obtained> {
        assert!(reservation.access.public_key.is_some(), "a provider is never called without a key");
        assert!(ctx.dir.is_dir(), "a provider has its folder");
        if self.dir.join("speak").exists() {
            // A line of each level, for those who look at what comes through.
            tracing::error!("at error");
            tracing::warn!("at warn");
            tracing::info!("at info");
            tracing::debug!("at debug");
            tracing::trace!("at trace");
        }
        self.step(ctx, "init").await?;
        self.make(ctx, reservation).await
    }

    async fn destroy(&self, ctx: &Context, environment: &Environment) -> Result<()> {
        self.step(ctx, "destroy").await?;
        // The secret comes back in every command, or the state would have to hold it.
        assert_eq!(environment.reservations[0].provider.extra["password"], "canary-password-1");
        let folder = self.machines(environment.experiment());
        for name in names(&folder) {
            self.step(ctx, &format!("delete:{name}")).await?;
            fs::remove_file(folder.join(&name)).unwrap();
            ctx.tell(&name, Event::Deleted);
            self.step(ctx, &format!("deleted:{name}")).await?;
        }
        if fs::exists(self.dir.join("sticky")).unwrap() {
            let left = cloud_providers::Resource::new("machine", "sticky-1");
            return Err(Error::internal("it does not go away").with_leftovers([left]));
        }
        Ok(())
    }

    async fn before_preinstall(&self, ctx: &Context, _: &Environment) -> Result<()> {
        self.step(ctx, "before").await
    }

    async fn after_preinstall(&self, ctx: &Context, _: &Environment) -> Result<()> {
        self.step(ctx, "after").await
    }

    async fn plan(&self, _: &Context, reservation: &Reservation) -> Result<Plan> {
        assert!(reservation.access.public_key.is_some(), "a provider is never called without a key");
        let mut plan = Plan::of(reservation);
        for machine in &mut plan.machines {
            machine.exists = self.machines(&reservation.experiment).join(&machine.name).exists();
        }
        Ok(plan)
    }

    async fn status(&self, _: &Context, environment: &Environment) -> Result<Vec<MachineStatus>> {
        let folder = self.machines(environment.experiment());
        let status = |name: &String| {
            MachineStatus::new(name, fs::read_to_string(folder.join(name)).unwrap(), "running")
        };
        Ok(names(&folder).iter().map(status).collect())
    }
}
