//! A web server of one page: `web PORT NAME`.
//!
//! Writes its pid to /var/run/NAME.pid and shows itself as "NAME: master process", as tests of namespaces expect.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::time::Duration;

unsafe extern "C" {
    // SAFETY: plain numbers, and a handler that lives as long as the program.
    safe fn signal(number: i32, handler: usize) -> usize;
}

extern "C" fn leave(_: i32) {
    std::process::exit(0);
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let port: u16 = arguments.get(1).and_then(|p| p.parse().ok()).unwrap_or(80);
    let name = arguments.get(2).cloned().unwrap_or_else(|| "web".to_owned());
    let title = format!("{name}: master process");
    if arguments[0] != title {
        let me = std::env::current_exe().expect("own path");
        panic!("{}", std::process::Command::new(me).arg0(title).args([port.to_string(), name]).exec());
    }
    let handler: extern "C" fn(i32) = leave;
    for number in [1, 2, 3, 15] {
        signal(number, handler as usize);
    }
    // Dual-stack where there is IPv6.
    let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
    let listener = listener.unwrap_or_else(|e| panic!("listen on port {port}: {e}"));
    std::fs::write(format!("/var/run/{name}.pid"), format!("{}\n", std::process::id())).expect("pid file");
    println!("{name} listening on port {port}");
    for stream in listener.incoming().flatten() {
        let name = name.clone();
        std::thread::spawn(move || serve(stream, &name));
    }
}

fn serve(mut stream: std::net::TcpStream, name: &str) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < 65536 {
        match stream.read(&mut chunk).ok()? {
            0 => return None,
            n => request.extend_from_slice(&chunk[..n]),
        }
    }
    let body = format!("<html><body><h1>{name} works</h1></body></html>\n");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n", body.len());
    write!(stream, "{head}Connection: close\r\n\r\n{body}").ok()
}
