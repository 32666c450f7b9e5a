(() => {
  const SIDE = 4096;  // of the canvas, in px
  const of = (id) => document.getElementById(id);
  const form = of("form"), file = of("file"), drop = of("drop"), least = of("least");
  const canvas = of("canvas"), rows = of("rows"), said = of("said"), wrong = of("wrong");
  const measure = form.dataset.measure, maxBytes = Number(form.dataset.maxBytes);
  let image = null, answer = null, turn = 0, aborter = null;

  const say = (text, problem = "") => {
    said.textContent = text;
    wrong.textContent = problem;
    wrong.hidden = !problem;
  };
  const hue = (label) => ((label - 1) * 222.5) % 360;
  const shown = () => answer.detections.filter((one) => one[measure] >= Number(least.value));
  const fixed = (value, digits) => value.toFixed(digits).replace("-", "−");
  const name = (one) => `${one.class} ${
    measure === "score" ? fixed(one.score, 2) : `${Math.round(100 * one.probability)} %`}`;

  const draw = (found) => {
    const scale = Math.min(1, SIDE / Math.max(answer.width, answer.height));
    canvas.width = Math.max(1, Math.round(answer.width * scale));
    canvas.height = Math.max(1, Math.round(answer.height * scale));
    const pen = canvas.getContext("2d");
    // pixels of the canvas in one of the page, so that lines and names are as large on every image
    const unit = Math.max(canvas.width / (canvas.clientWidth || canvas.width),
      canvas.height / (canvas.clientHeight || canvas.height));
    if (image) pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    else {
      pen.fillStyle = "#888";
      pen.fillRect(0, 0, canvas.width, canvas.height);
    }
    const height = 20 * unit, pad = 4 * unit;
    pen.font = `600 ${14 * unit}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    for (const one of [...found].reverse()) {  // the best on top
      const [x1, y1, x2, y2] = one.box.map((value) => value * scale);
      const box = [x1, y1, x2 - x1, y2 - y1];
      for (const [style, width] of [["#000", 4], [`hsl(${hue(one.label)} 90% 60%)`, 2]]) {
        pen.strokeStyle = style;
        pen.lineWidth = width * unit;
        pen.strokeRect(...box);
      }
    }
    for (const one of [...found].reverse()) {
      const [x1, y1] = one.box.map((value) => value * scale);
      const width = pen.measureText(name(one)).width + 2 * pad;
      const left = Math.max(0, Math.min(x1, canvas.width - width));
      const top = y1 >= height ? y1 - height : Math.min(y1, Math.max(0, canvas.height - height));
      pen.fillStyle = `hsl(${hue(one.label)} 90% 22%)`;
      pen.fillRect(left, top, width, height);
      pen.fillStyle = "#fff";
      pen.fillText(name(one), left + pad, top + height / 2);
    }
  };

  const cell = (row, text, tag = "td") => {
    const made = row.appendChild(document.createElement(tag));
    if (tag === "th") Object.assign(made, { scope: "row", className: "exact" });
    made.textContent = text;
  };

  const update = () => {
    of("least-value").textContent = fixed(Number(least.value), 2);
    if (!answer) return;
    const found = shown();
    draw(found);
    rows.replaceChildren(...found.map((one) => {
      const row = document.createElement("tr");
      cell(row, one.class, "th");
      if (measure === "probability") cell(row, fixed(one.probability, 2));
      cell(row, fixed(one.score, 2));
      for (const value of one.box) cell(row, fixed(value, 0));
      return row;
    }));
    const time = Math.round(answer.milliseconds);
    const unseen = image ? "" : "; this browser can't show such an image, only its boxes";
    say(`${found.length} of ${answer.detections.length} detections in ${answer.width} × ${
      answer.height} pixels, ${time} ms${unseen}.`);
  };

  const ask = async (blob) => {
    const own = ++turn;
    aborter?.abort();  // the service drops what nobody waits for
    aborter = new AbortController();
    say("Detecting…");
    try {
      if (blob.size > maxBytes) throw new Error(`The file has more than ${maxBytes} bytes.`);
      const shownAs = createImageBitmap(blob).catch(() => null);
      const type = blob.type.startsWith("image/") ? blob.type : "application/octet-stream";
      const response = await fetch("detect?score=-1000000&max=500",
        { method: "POST", body: blob, headers: { "Content-Type": type }, signal: aborter.signal });
      const found = await response.json().catch(() => ({ error: response.statusText }));
      if (!response.ok) throw new Error(`The service answers ${response.status}: ${found.error}.`);
      const bitmap = await shownAs;
      if (own !== turn) return;
      [answer, image] = [found, bitmap];
      if (measure === "score") {
        const scores = found.detections.map((one) => one.score);
        least.min = Math.floor(Math.min(-1, ...scores));
        least.max = Math.ceil(Math.max(1, ...scores));
      }
      of("result").hidden = false;
      update();
    } catch (error) {
      if (own !== turn) return;
      const network = error instanceof TypeError;
      say("", network ? "The service can't be reached." : error.message);
      answer = null;
      of("result").hidden = true;
    }
  };

  const take = (files) => {
    if (!files.length) return;
    if (file.files !== files) file.files = files;  // shows the name
    ask(files[0]);
  };
  const dropping = (on) => drop.classList.toggle("over", on);
  file.addEventListener("change", () => take(file.files));
  file.addEventListener("click", () => { file.value = ""; });  // so that the same file may follow
  least.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("dragover", (event) => { event.preventDefault(); dropping(true); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) dropping(false); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    dropping(false);
    if (!event.dataTransfer.files.length) say("", "Expected a file: links aren't followed.");
    take(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => take(event.clipboardData.files));
  addEventListener("resize", () => { if (answer) draw(shown()); });
  form.reset();  // Firefox keeps the slider over a reload
})();
