//! The SSH server of a machine whose host has none.
//!
//! Keys only, against `~/.ssh/authorized_keys`. Commands, shells with or without a terminal, transfer of files, and
//! forwarding of connections to what the machine reaches.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use nix::unistd::User as Account;
use russh::{
    Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Pty as Mode, Sig,
    keys::PrivateKey,
    server::{
        Auth, ChannelOpenHandle, Config, Handler, Msg, PublicKeyOffer, Session as Connection,
        VerifiedPublicKey, run_stream,
    },
};
use tokio::net::{TcpListener, TcpStream};

use super::{
    SshServer, accounts, log,
    session::{Session, What, command},
    spawn::{self, Pty, Running, winsize},
    start,
};

const PORT: u16 = 22;
/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A client that does not answer for three of these is gone.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long a connection that is forwarded may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// Serves until the process is ended.
pub(super) fn run(which: SshServer) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))?;
    let sftp = if which == SshServer::Ours { What::OwnSftp } else { What::Sftp };
    runtime.block_on(serve(&sftp))
}

fn config() -> Result<Config, String> {
    let path = start::host_key();
    let key = PrivateKey::read_openssh_file(&path)
        .map_err(|e| format!("cannot read the host key {}: {e}", path.display()))?;
    Ok(Config {
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        // Guessing a key is hopeless, so that nobody has to be slowed down.
        auth_rejection_time: Duration::ZERO,
        keys: vec![key],
        // A shell may be left alone for days.
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        nodelay: true,
        ..Config::default()
    })
}

async fn serve(sftp: &What) -> Result<(), String> {
    let config = Arc::new(config()?);
    let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).await {
        Ok(listener) => listener,
        // A kernel without IPv6.
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))
            .await
            .map_err(|e| format!("cannot listen on port {PORT}: {e}"))?,
    };
    log("the SSH server listens");
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                log(format!("cannot accept a connection: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (config, sftp) = (config.clone(), sftp.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let local = stream.local_addr().unwrap_or(peer);
            let client = Client { peer, local, sftp, account: None, channels: HashMap::new() };
            // How a connection ends is the client's business: it goes away, or speaks something else.
            if let Ok(running) = run_stream(config, stream, client).await {
                let _ = running.await;
            }
        });
    }
}

/// One connection.
struct Client {
    peer: SocketAddr,
    local: SocketAddr,
    /// How files are transferred.
    sftp: What,
    account: Option<Account>,
    channels: HashMap<ChannelId, State>,
}

/// What a channel has come to.
enum State {
    /// It is open, and what is to run in it is not said yet.
    Asked { channel: Channel<Msg>, env: Vec<(String, String)>, pty: Option<Pty> },
    /// Something runs in it.
    Running(Running),
}

impl Client {
    fn may(&self, user: &str, key: &russh::keys::PublicKey) -> Option<Account> {
        accounts::find(user).ok().flatten().filter(|account| accounts::may_log_in(account, key))
    }

    fn environment(
        &self,
        account: &Account,
        asked: Vec<(String, String)>,
        pty: Option<&Pty>,
    ) -> Vec<(String, String)> {
        let (peer, local) = (self.peer, self.local);
        let shell = accounts::shell(account).display().to_string();
        let ip = |address: SocketAddr| address.ip().to_canonical();
        let connection = format!("{} {} {} {}", ip(peer), peer.port(), ip(local), local.port());
        let mut env: Vec<(String, String)> = asked;
        let own = [
            ("PATH", PATH.to_owned()),
            ("HOME", account.dir.display().to_string()),
            ("USER", account.name.clone()),
            ("LOGNAME", account.name.clone()),
            ("SHELL", shell),
            ("SSH_CONNECTION", connection),
        ];
        env.extend(own.map(|(key, value)| (key.to_owned(), value)));
        if let Some(pty) = pty {
            env.push(("TERM".into(), pty.term.clone()));
        }
        env
    }

    fn start(&mut self, id: ChannelId, what: What, connection: &mut Connection) -> Result<(), russh::Error> {
        let (Some(State::Asked { channel, env, pty }), Some(account)) =
            (self.channels.remove(&id), self.account.clone())
        else {
            // Twice in one channel.
            return connection.channel_failure(id);
        };
        let pty = pty.filter(|_| matches!(what, What::Shell | What::Command(_)));
        let env = self.environment(&account, env, pty.as_ref());
        let session = Session { user: account.name, tty: pty.is_some(), what };
        match spawn::run(&session, &env, pty.as_ref(), channel, connection.handle()) {
            Ok(running) => {
                self.channels.insert(id, State::Running(running));
                connection.channel_success(id)
            }
            Err(error) => {
                log(format!("cannot start a session: {error}"));
                connection.channel_failure(id)
            }
        }
    }

    fn running(&mut self, id: ChannelId) -> Option<&mut Running> {
        match self.channels.get_mut(&id) {
            Some(State::Running(running)) => Some(running),
            _ => None,
        }
    }
}

impl Handler for Client {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(if self.may(user, offer.public_key).is_some() { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        self.account = self.may(user, key.public_key);
        Ok(if self.account.is_some() { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Connection,
    ) -> Result<(), Self::Error> {
        self.channels.insert(channel.id(), State::Asked { channel, env: Vec::new(), pty: None });
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Connection,
    ) -> Result<(), Self::Error> {
        let port = u16::try_from(port).unwrap_or_default();
        let connected = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect((host, port))).await;
        match connected {
            Ok(Ok(stream)) => {
                self.channels.insert(channel.id(), State::Running(spawn::forward(stream, channel)));
                reply.accept().await;
            }
            _ => reply.reject(ChannelOpenFailure::ConnectFailed).await,
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        _: &[(Mode, u32)],
        connection: &mut Connection,
    ) -> Result<(), Self::Error> {
        match self.channels.get_mut(&id) {
            Some(State::Asked { pty, .. }) => {
                *pty = Some(Pty { term: term.to_owned(), size: winsize(columns, rows, width, height) });
                connection.channel_success(id)
            }
            _ => connection.channel_failure(id),
        }
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        connection: &mut Connection,
    ) -> Result<(), Self::Error> {
        let valid = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
        match self.channels.get_mut(&id) {
            Some(State::Asked { env, .. }) if valid => {
                env.push((name.to_owned(), value.to_owned()));
                connection.channel_success(id)
            }
            _ => connection.channel_failure(id),
        }
    }

    async fn shell_request(&mut self, id: ChannelId, connection: &mut Connection) -> Result<(), Self::Error> {
        self.start(id, What::Shell, connection)
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        data: &[u8],
        connection: &mut Connection,
    ) -> Result<(), Self::Error> {
        if data.contains(&0) {
            return connection.channel_failure(id);
        }
        self.start(id, What::Command(command(data)), connection)
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        connection: &mut Connection,
    ) -> Result<(), Self::Error> {
        match name {
            "sftp" => self.start(id, self.sftp.clone(), connection),
            _ => connection.channel_failure(id),
        }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        _: &mut Connection,
    ) -> Result<(), Self::Error> {
        if let Some(running) = self.running(id) {
            running.resize(winsize(columns, rows, width, height));
        }
        Ok(())
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _: &mut Connection) -> Result<(), Self::Error> {
        if let Some(running) = self.running(id) {
            running.signal(&signal);
        }
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Connection) -> Result<(), Self::Error> {
        if let Some(running) = self.running(id) {
            running.feed(data);
        }
        Ok(())
    }

    fn adjust_window(&mut self, id: ChannelId, current: u32) -> u32 {
        let whole = Config::default().window_size;
        self.running(id).map_or(current, |running| running.window(whole))
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Connection) -> Result<(), Self::Error> {
        if let Some(running) = self.running(id) {
            running.end_of_input();
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Connection) -> Result<(), Self::Error> {
        self.channels.remove(&id);
        Ok(())
    }
}
