"use strict";
// The turntable of report.html: WebGL 1, no libraries. World: y up, metres; the photo's camera is at the origin
// and looks along -z.
(() => {
  const scene = JSON.parse(document.getElementById("scene").textContent);
  const canvas = document.getElementById("canvas");
  const gl = canvas.getContext("webgl", { antialias: true, preserveDrawingBuffer: true });
  if (!gl) {
    canvas.hidden = true;
    const note = document.getElementById("viewer-note");
    note.hidden = false;
    note.textContent = "This browser has no WebGL; scene.glb beside this page opens in any 3D program.";
    return;
  }
  gl.getExtension("OES_element_index_uint");

  // -- meshes

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;

  function positionsOf(mesh) {
    const steps = new Uint16Array(bytes(mesh.positions));
    const out = new Float32Array(mesh.count * 3);
    for (let i = 0; i < out.length; i++) out[i] = mesh.low[i % 3] + (steps[i] / 65535) * mesh.scale[i % 3];
    return out;
  }

  function normalsOf(positions, faces) {
    const out = new Float32Array(positions.length);
    for (let f = 0; f < faces.length; f += 3) {
      const [a, b, c] = [faces[f] * 3, faces[f + 1] * 3, faces[f + 2] * 3];
      const u = [0, 1, 2].map((k) => positions[b + k] - positions[a + k]);
      const v = [0, 1, 2].map((k) => positions[c + k] - positions[a + k]);
      const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
      for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) out[corner + k] += n[k];
    }
    return out; // the shader normalises
  }

  function buffer(target, data) {
    const handle = gl.createBuffer();
    gl.bindBuffer(target, handle);
    gl.bufferData(target, data, gl.STATIC_DRAW);
    return handle;
  }

  function textureOf(url) {
    const handle = gl.createTexture();
    const set = (source) => {
      gl.bindTexture(gl.TEXTURE_2D, handle);
      gl.pixelStorei(gl.UNPACK_FLIP_Y_WEBGL, true); // v counts upwards
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, source);
      for (const [name, value] of [
        [gl.TEXTURE_MIN_FILTER, gl.LINEAR],
        [gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE],
        [gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE],
      ]) gl.texParameteri(gl.TEXTURE_2D, name, value);
      draw();
    };
    const image = new Image();
    image.onload = () => set(image);
    image.src = url;
    return handle;
  }

  let low = [Infinity, Infinity, Infinity];
  let high = [-Infinity, -Infinity, -Infinity];
  const meshes = scene.meshes.map((mesh) => {
    const positions = positionsOf(mesh);
    const data = bytes(scene.indices[mesh.faces]);
    const faces = mesh.count > 65535 ? new Uint32Array(data) : new Uint16Array(data);
    low = low.map((v, k) => Math.min(v, mesh.low[k]));
    high = high.map((v, k) => Math.max(v, mesh.low[k] + mesh.scale[k]));
    return {
      color: mesh.color,
      position: buffer(gl.ARRAY_BUFFER, positions),
      normal: buffer(gl.ARRAY_BUFFER, normalsOf(positions, faces)),
      uv: mesh.uv ? buffer(gl.ARRAY_BUFFER, new Float32Array(bytes(mesh.uv))) : null,
      texture: mesh.texture ? textureOf(mesh.texture) : null,
      faces: buffer(gl.ELEMENT_ARRAY_BUFFER, faces),
      count: faces.length,
      type: mesh.count > 65535 ? gl.UNSIGNED_INT : gl.UNSIGNED_SHORT,
    };
  });

  // A grid on the floor, below the lowest point, in steps of half a metre.
  const middle = low.map((v, k) => (v + high[k]) / 2);
  const radius = Math.max(Math.hypot(...low.map((v, k) => high[k] - v)) / 2, 1e-3);
  const step = Math.pow(2, Math.round(Math.log2(radius / 2)));
  const lines = [];
  for (let i = -4; i <= 4; i++) {
    for (const [dx, dz] of [[i, 4], [4, i]]) {
      const flip = dx === i && dz === 4 ? [1, -1] : [-1, 1];
      lines.push(middle[0] + dx * step, low[1], middle[2] + dz * step);
      lines.push(middle[0] + dx * step * flip[0], low[1], middle[2] + dz * step * flip[1]);
    }
  }
  const grid = { position: buffer(gl.ARRAY_BUFFER, new Float32Array(lines)), count: lines.length / 3 };

  // -- shading

  const program = gl.createProgram();
  for (const [kind, source] of [
    [gl.VERTEX_SHADER, `
      attribute vec3 position, normal;
      attribute vec2 uv;
      uniform mat4 view, lens;
      varying vec3 n;
      varying vec2 t;
      void main() {
        n = mat3(view) * normal;
        t = uv;
        gl_Position = lens * view * vec4(position, 1.0);
      }`],
    [gl.FRAGMENT_SHADER, `
      precision mediump float;
      varying vec3 n;
      varying vec2 t;
      uniform vec3 color;
      uniform float lit, textured;
      uniform sampler2D map;
      void main() {
        vec3 base = mix(color, texture2D(map, t).rgb, textured);
        vec3 m = normalize(n);
        if (!gl_FrontFacing) m = -m;
        float light = 0.42 + 0.55 * max(dot(m, normalize(vec3(0.4, 0.6, 0.8))), 0.0)
          + 0.12 * max(dot(m, normalize(vec3(-0.8, 0.1, 0.3))), 0.0);
        gl_FragColor = vec4(base * mix(1.0, light, lit), 1.0);
      }`],
  ]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  gl.useProgram(program);
  const at = (name) => gl.getUniformLocation(program, name);
  const [uView, uLens, uColor, uLit, uTextured] = ["view", "lens", "color", "lit", "textured"].map(at);
  const [aPosition, aNormal, aUv] = ["position", "normal", "uv"].map((n) => gl.getAttribLocation(program, n));

  function attribute(location, handle, size) {
    if (location < 0) return;
    if (!handle) {
      gl.disableVertexAttribArray(location);
      return;
    }
    gl.bindBuffer(gl.ARRAY_BUFFER, handle);
    gl.enableVertexAttribArray(location);
    gl.vertexAttribPointer(location, size, gl.FLOAT, false, 0, 0);
  }

  // -- the eye: it circles `target` at `distance`; azimuth 0 and elevation 0 look the way the photo does

  const fov = 0.6;
  const away = radius / Math.sin(fov / 2);
  const eye = { azimuth: 0, elevation: 0, distance: away, target: [...middle] };

  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

  function axes() {
    const [sa, ca, se, ce] = [Math.sin(eye.azimuth), Math.cos(eye.azimuth), Math.sin(eye.elevation), Math.cos(eye.elevation)];
    return { right: [ca, 0, -sa], up: [-sa * se, ce, -ca * se], back: [sa * ce, se, ca * ce] };
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    gl.viewport(0, 0, width, height);
    gl.clearColor(0.125, 0.14, 0.17, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);

    const { right, up, back } = axes();
    const place = eye.target.map((v, k) => v + back[k] * eye.distance);
    const view = [];
    for (let k = 0; k < 3; k++) view.push(right[k], up[k], back[k], 0);
    view.push(-dot(right, place), -dot(up, place), -dot(back, place), 1);
    // The narrower side of the canvas sees `fov`.
    const f = 1 / Math.tan(fov / 2);
    const [fx, fy] = width > height ? [(f * height) / width, f] : [f, (f * width) / height];
    const [near, far] = [eye.distance / 100, eye.distance + radius * 20];
    const lens = [fx, 0, 0, 0, 0, fy, 0, 0, 0, 0, (far + near) / (near - far), -1, 0, 0, (2 * far * near) / (near - far), 0];
    gl.uniformMatrix4fv(uView, false, view);
    gl.uniformMatrix4fv(uLens, false, lens);

    gl.uniform1f(uLit, 1);
    for (const mesh of meshes) {
      attribute(aPosition, mesh.position, 3);
      attribute(aNormal, mesh.normal, 3);
      attribute(aUv, mesh.uv, 2);
      gl.uniform3fv(uColor, mesh.color);
      gl.uniform1f(uTextured, mesh.texture ? 1 : 0);
      gl.bindTexture(gl.TEXTURE_2D, mesh.texture);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, mesh.faces);
      gl.drawElements(gl.TRIANGLES, mesh.count, mesh.type, 0);
    }
    attribute(aPosition, grid.position, 3);
    attribute(aNormal, null, 3);
    attribute(aUv, null, 2);
    gl.uniform1f(uLit, 0);
    gl.uniform1f(uTextured, 0);
    gl.uniform3f(uColor, 0.3, 0.33, 0.38);
    gl.drawArrays(gl.LINES, 0, grid.count);
  }

  // -- hands on

  const turn = document.getElementById("turn");
  const limit = (v, a, b) => Math.min(Math.max(v, a), b);
  const pointers = new Map();

  function stop() {
    turn.checked = false;
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    stop();
  });
  for (const name of ["pointerup", "pointercancel"])
    canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
    if (pointers.size === 2) {
      const other = [...pointers.entries()].find(([id]) => id !== event.pointerId)[1];
      const span = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
      zoom(span(before) / span(now));
    } else if (event.shiftKey || event.buttons === 4) {
      const { right, up } = axes();
      const scale = (2 * eye.distance * Math.tan(fov / 2)) / Math.min(canvas.clientWidth, canvas.clientHeight);
      eye.target = eye.target.map((v, k) => v - (right[k] * dx - up[k] * dy) * scale);
    } else {
      eye.azimuth -= dx * 0.01;
      eye.elevation = limit(eye.elevation + dy * 0.01, -Math.PI / 2, Math.PI / 2);
    }
    pointers.set(event.pointerId, now);
    draw();
  });

  function zoom(factor) {
    eye.distance = limit(eye.distance * factor, away / 20, away * 8);
    draw();
  }
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(limit(event.deltaY, -100, 100) * 0.002));
  }, { passive: false });

  // "photo" looks from the photo's camera towards the subjects.
  const toCamera = Math.hypot(...middle) || 1;
  const views = {
    photo: [Math.atan2(-middle[0], -middle[2]), Math.asin(limit(-middle[1] / toCamera, -1, 1))],
    side: [Math.PI / 2, 0],
    back: [Math.PI, 0],
    top: [0, Math.PI / 2],
  };
  for (const button of document.querySelectorAll("[data-view]"))
    button.addEventListener("click", () => {
      stop();
      [eye.azimuth, eye.elevation] = views[button.dataset.view];
      Object.assign(eye, { distance: away, target: [...middle] });
      draw();
    });

  let last = 0;
  function frame(time) {
    if (turn.checked) {
      eye.azimuth += (Math.min(time - last, 100) / 1000) * 0.6;
      draw();
    }
    last = time;
    requestAnimationFrame(frame);
  }
  window.addEventListener("resize", draw);
  draw();
  requestAnimationFrame(frame);
})();
