//! Real programs on a loopback network of their own, as an ordinary user.

use rig::{User, requires};

use crate::session::{Session, program};

/// Runs a script inside, in the session's folder, `$L` being loopbox; returns what it printed.
fn inside(session: &Session, options: &[&str], script: &str) -> String {
    let mut command = session.loopbox();
    command.env("L", program()).arg("run").args(options).args(["--", "sh", "-euc"]);
    rig::run_command(command.arg(format!("cd {}\n{script}", session.join("").display())))
}

/// The number behind `name`, up to a space or a slash.
fn number(text: &str, name: &str) -> f64 {
    let rest = text.split_once(name).unwrap_or_else(|| panic!("no {name}: {text}")).1;
    rest.split([' ', '\n', '/']).next().unwrap().parse().unwrap()
}

#[test]
fn postgresql_works_and_one_of_its_addresses_is_slow() {
    // PostgreSQL's own programs lie in a folder of their own in Debian.
    let Some(folder) = std::fs::read_dir("/usr/lib/postgresql").ok().and_then(|mut found| found.next()) else {
        requires!("pg_ctl");
        return;
    };
    let session = Session::new(User::Ordinary, "postgresql");
    let script = format!(
        "PATH=$PATH:{}/bin; initdb -D data -A trust -N --no-instructions >/dev/null
        pg_ctl -D data -o '-c listen_addresses=localhost,127.0.0.5 -c unix_socket_directories=' -l log -w start >log.start
        pgbench -h 127.0.0.1 -i -q postgres 2>/dev/null
        pgbench -h 127.0.0.1 -n -c 2 -t 20 postgres; pgbench -h 127.0.0.5 -n -S -c 2 -t 20 postgres
        psql -h ::1 -Atc 'select 6*7' postgres; pg_ctl -D data -m immediate stop >/dev/null",
        folder.unwrap().path().display()
    );
    let text = inside(&session, &["--rule", "to 127.0.0.5 port 5432: latency 20ms"], &script);
    assert!(text.ends_with("\n42\n"), "{text}");
    let (fast, slow) = text.rsplit_once("pgbench (").unwrap();
    assert_eq!((number(fast, "processed: ") as u32, number(slow, "failed transactions: ") as u32), (40, 0), "{text}");
    // Requests alone meet the rule: the answers come from there.
    assert!((20.0..60.0).contains(&number(slow, "latency average = ")), "{slow}");
}

#[test]
fn redis_answers_where_it_is_bound_and_nowhere_else() {
    requires!("redis-server", "redis-benchmark");
    let session = Session::new(User::Ordinary, "redis");
    let script = "redis-server --port 6379 --bind 127.0.0.1 ::1 --save '' --logfile log --dir . &
        until redis-cli ping >/dev/null 2>&1; do :; done
        redis-cli -h 127.0.0.1 set key value; redis-cli -h ::1 get key
        redis-cli -h 127.0.0.2 get key 2>&1 || true; redis-benchmark --csv -n 2000 -c 10 -t get,set";
    let text = inside(&session, &[], script);
    assert!(text.starts_with("OK\nvalue\nCould not connect to Redis at 127.0.0.2:6379"), "{text}");
    assert!(text.contains("\"SET\",") && text.contains("\"GET\","), "{text}");
}

#[test]
fn http_2_is_spoken_by_nginx_and_curl() {
    requires!("nginx", "curl", "openssl");
    let session = Session::new(User::Ordinary, "http2");
    let configuration = "daemon off; pid nginx.pid; error_log stderr; events {}
        http { access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u;
        scgi_temp_path s; server { listen [::]:443 ssl http2 ipv6only=off; ssl_certificate cert.pem;
        ssl_certificate_key key.pem; location / { return 200 '$server_protocol\\n'; } } }";
    std::fs::write(session.join("nginx.conf"), configuration).unwrap();
    let script =
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem \
            -days 2 -subj /CN=localhost -addext subjectAltName=DNS:shop.localhost 2>/dev/null
        nginx -p . -e stderr -c $PWD/nginx.conf 2>log & until ss -Htln | grep -q ':443 '; do :; done
        curl -sS --cacert cert.pem -w '%{http_version}\n' https://shop.localhost/";
    assert_eq!(inside(&session, &["--latency", "1ms"], script), "HTTP/2.0\n2\n");
}

#[test]
fn dns_is_served_by_udp_and_tcp_of_both_families() {
    requires!("dnsmasq", "kdig");
    let session = Session::new(User::Ordinary, "dns");
    let script = "dnsmasq --no-daemon --conf-file=/dev/null --no-resolv --no-hosts --port 5353 --bind-interfaces \
            --listen-address=127.0.0.1,::1 --host-record=db.example,10.1.2.3 --user= --group= --pid-file= 2>log &
        until ss -Hlun | grep -q '127.0.0.1:5353' && ss -Htln | grep -q '127.0.0.1:5353'; do :; done
        for how in '@127.0.0.1' '@::1' '@127.0.0.1 +tcp'; do kdig $how -p 5353 +short db.example; done";
    assert_eq!(inside(&session, &["--rule", "udp: latency 5ms"], script), "10.1.2.3\n".repeat(3));
}

#[test]
fn a_printer_server_has_its_port_at_localhost() {
    requires!("cupsd", "curl");
    let session = Session::new(User::Ordinary, "cups");
    let script = "mkdir -p run spool cache log
        printf 'Listen localhost:631\nDefaultAuthType None\n' >cupsd.conf
        printf '%s\n' \"User $(id -un)\" \"Group $(id -gn)\" \"ServerRoot $PWD\" \"StateDir $PWD/run\" \
            \"RequestRoot $PWD/spool\" \"CacheDir $PWD/cache\" \"AccessLog $PWD/log/access\" \"ErrorLog $PWD/log/error\" \
            \"PageLog $PWD/log/page\" >cups-files.conf
        cupsd -f -c $PWD/cupsd.conf -s $PWD/cups-files.conf & until ss -Htln | grep -q '127.0.0.1:631 '; do :; done
        curl -sSi -o said http://localhost:631/ipp/none; grep -i '^server:' said";
    assert!(inside(&session, &[], script).contains("CUPS/"));
}

#[test]
fn a_server_of_ipv6_alone_is_reached_by_its_name_and_not_by_ipv4() {
    requires!("python3", "curl");
    let session = Session::new(User::Ordinary, "ipv6");
    let script = "python3 -m http.server 80 --bind ::1 2>log >&2 & until ss -Htln | grep -q '::1.:80 '; do :; done
        curl -s -o page -w '%{http_code} %{remote_ip}\n' http://localhost/; $L ports localhost:80 || true
        curl -s http://127.0.0.1/ || echo only IPv6";
    let text = inside(&session, &[], script);
    assert!(text.starts_with("200 ::1\n") && text.ends_with("only IPv6\n"), "{text}");
}

#[test]
fn a_browser_loads_a_page() {
    requires!("chromium");
    let session = Session::new(User::Ordinary, "browser");
    std::fs::create_dir(session.join("site")).unwrap();
    let page = "<pre></pre><script>fetch('data.txt').then(r => r.text()).then(t =>
        document.querySelector('pre').textContent = 'fetched ' + t)</script>";
    std::fs::write(session.join("site/index.html"), page).unwrap();
    std::fs::write(session.join("site/data.txt"), "inside").unwrap();
    let script = "$L web site -q >log & until ss -Htln | grep -q '127.0.0.1:8080 '; do :; done
        HOME=$PWD timeout 100 chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage \
            --user-data-dir=$PWD/chromium --virtual-time-budget=5000 --dump-dom http://shop.localhost:8080/ 2>log.chromium";
    let options = ["--latency", "2ms", "--capture", session.join("run.pcapng").to_str().unwrap()].map(str::to_owned);
    let text = inside(&session, &options.each_ref().map(String::as_str), script);
    assert!(text.contains("<pre>fetched inside</pre>"), "{text}");
}

#[test]
fn ping_shows_what_others_report_as_iputils_does() {
    requires!("nft", "ping", "unshare");
    rig::requires_root!();
    let script = "ip link set lo up; printf %s 'table inet t { chain c { type filter hook input priority 0
            ip daddr 127.0.0.9 icmp type echo-request reject with icmp type host-prohibited
            meta l4proto icmpv6 icmpv6 type echo-request reject with icmpv6 type admin-prohibited
        }
        }' | nft -f - || exit 9
        for target in 127.0.0.9 ::1; do $PING -c2 -i 0.01 -W 0.1 $target | sed 's/time .*//'; done";
    let said = |ping: &str| {
        let mut command = User::Myself.command("unshare");
        rig::run_command(command.env("PING", ping).args(["-n", "sh", "-c", script]))
    };
    let ours = said(&format!("{} ping", program().display()));
    assert!(ours.contains("From 127.0.0.9 icmp_seq=1 Destination Host Prohibited"), "{ours}");
    assert_eq!(ours, said("ping"));
}

/// Three machines in a row, made of network namespaces: `near` - `router` - `far`; runs a script on the first.
const ROW: &str = "set -e; near=$$; pids=
    for name in router far; do
        unshare -n sleep 60 & pid=$!; eval $name=$pid; pids=\"$pids $pid\"
        until test $(readlink /proc/$pid/ns/net) != $(readlink /proc/$$/ns/net); do sleep 0.01; done
    done
    trap 'kill $pids' EXIT; in_router() { nsenter -t $router -n \"$@\"; }; in_far() { nsenter -t $far -n \"$@\"; }
    ip link add left type veth peer name right netns $router; in_router ip link add out type veth peer name back netns $far
    ip addr add 10.7.1.2/24 dev left; ip -6 addr add fd07:1::2/64 dev left nodad; ip link set left up
    in_router ip addr add 10.7.1.1/24 dev right; in_router ip -6 addr add fd07:1::1/64 dev right nodad
    in_router ip addr add 10.7.2.1/24 dev out; in_router ip -6 addr add fd07:2::1/64 dev out nodad
    in_router ip link set right up; in_router ip link set out up; in_router ip link set lo up
    in_router sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
    in_far ip addr add 10.7.2.2/24 dev back; in_far ip -6 addr add fd07:2::2/64 dev back nodad; in_far ip link set back up
    in_far ip route add default via 10.7.2.1; in_far ip -6 route add default via fd07:2::1
    ip route add default via 10.7.1.1; ip -6 route add default via fd07:1::1
    until ping -c1 -W1 10.7.2.2 >/dev/null && ping -c1 -W1 fd07:2::2 >/dev/null; do sleep 0.1; done
    set +e
    for target in 10.7.2.2 fd07:2::2; do for hops in 1 2 255; do
        $PING -n -c2 -i 0.01 -W 1 -t $hops $target | sed 's/time[ =].*//; s/^rtt.*/rtt/'
        $PING -n -q -c1 -W 1 -t $hops $target >/dev/null; echo status $?
    done; done";

#[test]
fn ping_that_is_out_of_hops_says_so_as_iputils_does() {
    requires!("ping", "unshare", "nsenter", "ip");
    rig::requires_root!();
    let said = |ping: &str| {
        let mut command = User::Myself.command("unshare");
        rig::run_command(command.env("PING", ping).args(["-n", "timeout", "50", "sh", "-c", ROW]))
    };
    let ours = said(&format!("{} ping", program().display()));
    for line in [
        "From 10.7.1.1 icmp_seq=1 Time to live exceeded",
        "From fd07:1::1 icmp_seq=1 Time exceeded: Hop limit",
        "64 bytes from 10.7.2.2: icmp_seq=1 ttl=63 ",
        "status 1",
        "status 0",
    ] {
        assert!(ours.contains(line), "{line}: {ours}");
    }
    assert_eq!(ours, said("ping"));
}
