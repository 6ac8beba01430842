// A terminal for a guest's serial port: enough of one to log in, read a boot and mend what is broken. Colours and
// movements of the cursor over the screen are left out.

const maxLines = 5000;

// Screen keeps lines of text as a printing terminal would.
export class Screen {
  constructor() {
    this.lines = [""];
    this.column = 0;
    this.escape = ""; // a sequence that has begun
  }

  write(text) {
    for (const c of text) {
      if (this.escape !== "" || c === "\x1b") this.control(c);
      else this.put(c);
    }
    if (this.lines.length > maxLines) this.lines.splice(0, this.lines.length - maxLines);
  }

  put(c) {
    const last = this.lines.length - 1;
    switch (c) {
      case "\n": this.lines.push(""); this.column = 0; return;
      case "\r": this.column = 0; return;
      case "\b": this.column = Math.max(0, this.column - 1); return;
      case "\t": do this.put(" "); while (this.column % 8 !== 0); return;
    }
    if (c < " " || c === "\x7f") return;
    const line = this.lines[last].padEnd(this.column);
    this.lines[last] = line.slice(0, this.column) + c + line.slice(this.column + 1);
    this.column++;
  }

  // control takes in one escape sequence (ECMA-48), of which only those that erase mean something here.
  control(c) {
    this.escape += c;
    const s = this.escape;
    if (s.length > 64) { this.escape = ""; return; }
    if (s === "\x1b" || s === "\x1b[" || s === "\x1b]") return;
    if (s.startsWith("\x1b]")) { // a title, up to BEL or ST
      if (c === "\x07" || s.endsWith("\x1b\\")) this.escape = "";
      return;
    }
    if (s.startsWith("\x1b[") && !(c >= "@" && c <= "~")) return;
    if (/^\x1b[()#%]$/.test(s)) return; // one more character follows
    this.escape = "";
    const last = this.lines.length - 1;
    switch (s) {
      case "\x1b[K": case "\x1b[0K": this.lines[last] = this.lines[last].slice(0, this.column); break;
      case "\x1b[2K": this.lines[last] = ""; break;
      case "\x1b[2J": case "\x1b[3J": case "\x1bc": this.lines = [""]; this.column = 0; break;
      case "\x1b[C": this.column++; break;
      case "\x1b[D": this.column = Math.max(0, this.column - 1); break;
    }
  }

  toString() { return this.lines.join("\n"); }
}

const keys = {
  Enter: "\r", Backspace: "\x7f", Tab: "\t", Escape: "\x1b", Delete: "\x1b[3~", Home: "\x1b[H", End: "\x1b[F",
  PageUp: "\x1b[5~", PageDown: "\x1b[6~", ArrowUp: "\x1b[A", ArrowDown: "\x1b[B", ArrowRight: "\x1b[C", ArrowLeft: "\x1b[D",
};

// typed is what a key sends; undefined for those that are the browser's.
export function typed(e) {
  if (e.metaKey || e.isComposing) return undefined;
  if (e.ctrlKey && !e.altKey && e.key.length === 1) {
    if (e.shiftKey) return undefined; // copy and paste, as in other terminals
    const code = e.key.toUpperCase().charCodeAt(0);
    return code >= 64 && code < 96 ? String.fromCharCode(code - 64) : undefined;
  }
  if (e.key in keys) return keys[e.key];
  if (e.key.length !== 1 || e.ctrlKey) return undefined;
  return e.altKey ? "\x1b" + e.key : e.key;
}

function main() {
  const status = document.getElementById("status");
  const view = document.getElementById("screen");
  const screen = new Screen();
  const query = location.search;
  // The token can be used once: there is no sense in keeping it where it is seen and copied.
  history.replaceState(null, "", location.pathname);
  const socket = new WebSocket(location.origin.replace(/^http/, "ws") + location.pathname.replace(/[^/]*$/, "websockify") + query, ["binary"]);
  socket.binaryType = "arraybuffer";
  const decode = new TextDecoder(), encode = new TextEncoder();
  let opened = false, drawn = true;
  const draw = () => {
    if (!drawn) return;
    drawn = false;
    requestAnimationFrame(() => {
      drawn = true;
      const atEnd = view.scrollTop + view.clientHeight >= view.scrollHeight - 4;
      view.textContent = screen.toString();
      if (atEnd) view.scrollTop = view.scrollHeight;
    });
  };
  const send = (text) => { if (socket.readyState === WebSocket.OPEN) socket.send(encode.encode(text)); };
  socket.onopen = () => { opened = true; status.textContent = "connected; press Enter for a prompt"; view.focus(); };
  socket.onmessage = (e) => { screen.write(decode.decode(e.data, { stream: true })); draw(); };
  socket.onclose = () => {
    status.textContent = opened ? "the connection has ended; ask for another address to connect again"
      : "not connected: an address can be used once, within ten minutes; ask for another one";
  };
  view.addEventListener("keydown", (e) => {
    const text = typed(e);
    if (text === undefined) return;
    e.preventDefault();
    send(text);
  });
  view.addEventListener("paste", (e) => {
    e.preventDefault();
    send(e.clipboardData.getData("text").replace(/\r?\n/g, "\r"));
  });
}

if (typeof document !== "undefined") main();
