//! Connections and requests: HTTP/1.1 and HTTP/2 by hyper, on one thread; files are read on others.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::body::Body;
use tls::Certificate;

use super::Site;
use crate::{Error, Result, ResultExt as _};

/// Connections at a time; more wait to be taken.
const CONNECTIONS_MAX: usize = 512;
/// Requests of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 100;
/// How long a client may take for a handshake, and for the head of a request; also between two requests.
const PATIENCE: Duration = Duration::from_secs(30);
/// Threads that read files.
const READERS_MAX: usize = 16;

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    /// Who asked.
    pub peer: SocketAddr,
    /// `GET`
    pub method: String,
    /// As it was asked for: path and query.
    pub target: String,
    /// `HTTP/2.0`
    pub version: String,
    /// 200
    pub status: u16,
    /// The length of the body, where that is known before it is sent.
    pub bytes: Option<u64>,
}

/// Sockets that listen, and what is said on them.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<TcpListener>,
    certificate: Option<Certificate>,
}

/// What all connections share.
struct Shared<F> {
    site: Arc<Site>,
    acceptor: Option<TlsAcceptor>,
    builder: Builder<TokioExecutor>,
    visited: F,
    room: Arc<Semaphore>,
}

impl Server {
    /// Listens at each address.
    ///
    /// # Errors
    /// [`crate::Kind::Busy`] when one is taken.
    pub fn bind(addresses: &[SocketAddr], certificate: Option<Certificate>) -> Result<Self> {
        let bind = |address: &SocketAddr| TcpListener::bind(address).context(|| format!("listening at {address}"));
        Ok(Self { listeners: addresses.iter().map(bind).collect::<Result<_>>()?, certificate })
    }

    /// Where it listens: with the ports that the system chose.
    ///
    /// # Errors
    /// Those of the system.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>> {
        self.listeners.iter().map(|listener| listener.local_addr().context(|| "address of a socket")).collect()
    }

    /// Answers requests until SIGINT or SIGTERM; tells `visited` of each.
    ///
    /// # Errors
    /// Where there are no threads or sockets to be had.
    pub fn run(self, site: Site, visited: impl Fn(&Visit) + Send + Sync + 'static) -> Result<()> {
        let what = || "starting the server";
        let mut threads = tokio::runtime::Builder::new_current_thread();
        let runtime = threads.enable_all().max_blocking_threads(READERS_MAX).build().context(what)?;
        let configuration = |certificate: Certificate| certificate.configuration(&["h2", "http/1.1"]).context(what);
        let acceptor = self.certificate.map(configuration).transpose()?;
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX).keep_alive_interval(PATIENCE);
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let acceptor = acceptor.map(TlsAcceptor::from);
        let shared = Arc::new(Shared { site: Arc::new(site), acceptor, builder, visited, room });
        runtime.block_on(async {
            for listener in self.listeners {
                listener.set_nonblocking(true).context(what)?;
                let listener = tokio::net::TcpListener::from_std(listener).context(what)?;
                tokio::spawn(accept(listener, Arc::clone(&shared)));
            }
            let mut interrupt = signal(SignalKind::interrupt()).context(what)?;
            let mut terminate = signal(SignalKind::terminate()).context(what)?;
            std::future::poll_fn(|cx| match interrupt.poll_recv(cx) {
                std::task::Poll::Pending => terminate.poll_recv(cx),
                ready => ready,
            })
            .await;
            Ok::<_, Error>(())
        })?;
        // Files that are still read are nobody's any more.
        runtime.shutdown_background();
        Ok(())
    }
}

async fn accept<F: Fn(&Visit) + Send + Sync + 'static>(listener: tokio::net::TcpListener, shared: Arc<Shared<F>>) {
    loop {
        let Ok(room) = Arc::clone(&shared.room).acquire_owned().await else { return };
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors, most likely: connections that end give some back.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            match &shared.acceptor {
                None => talk(stream, peer, &shared).await,
                Some(acceptor) => {
                    if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                        talk(stream, peer, &shared).await;
                    }
                }
            }
            drop(room);
        });
    }
}

/// One connection to its end. How it ends is the client's affair.
async fn talk<S, F>(stream: S, peer: SocketAddr, shared: &Arc<Shared<F>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(&Visit) + Send + Sync + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let shared = Arc::clone(shared);
        async move {
            let site = Arc::clone(&shared.site);
            let (parts, _) = request.into_parts();
            let task = tokio::task::spawn_blocking(move || (site.respond(&parts), parts));
            let (response, parts) = task.await.map_err(std::io::Error::other)?;
            (shared.visited)(&Visit {
                peer,
                method: parts.method.to_string(),
                target: parts.uri.path_and_query().map_or_else(|| parts.uri.to_string(), ToString::to_string),
                version: format!("{:?}", parts.version),
                status: response.status().as_u16(),
                bytes: response.body().len(),
            });
            Ok::<Response<Body>, std::io::Error>(response)
        }
    });
    let _ = shared.builder.serve_connection(TokioIo::new(stream), service).await;
}
