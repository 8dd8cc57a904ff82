// The page of `hmr-skel view`: decodes the layers (stages/drawing/viewer/encoding.py says how they are packed), skins them
// frame by frame, and draws curves. Everything it needs is in the page.
import {
  AmbientLight, BufferAttribute, BufferGeometry, Color, DirectionalLight, DoubleSide, FrontSide, GridHelper, Group,
  HemisphereLight, Mesh, MeshStandardMaterial, PerspectiveCamera, Scene, SRGBColorSpace, Vector3, WebGLRenderer,
} from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import uPlot from "uplot";

const byId = (id) => document.getElementById(id);
const header = JSON.parse(byId("header").textContent);

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

const KINDS = { i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };

function readArray(buffer, entry) {
  const values = new KINDS[entry.kind](buffer.slice(entry.start, entry.start + entry.bytes));
  if (!entry.delta) return values;
  for (let i = 1; i < values.length; i++) values[i] = (values[i] + values[i - 1]) >>> 0;
  return values;
}

// One skinned surface: rest points of a frame = mean + coefficients x components; vertices = sum of weighted bones.
class Layer {
  constructor(buffer, description) {
    const read = (name) => readArray(buffer, description.arrays[name]);
    this.name = description.name;
    this.bones = description.bones;
    this.count = description.vertices;
    this.first = read("first");
    this.bone = read("bone");
    this.weight = read("weight");
    this.coefficients = read("coefficients");
    this.quaternions = read("quaternions");
    this.translations = read("translations");
    this.mean = Float32Array.from(read("mean"), (value) => value * description.mean_step);
    this.components = description.component_steps.map((step, k) =>
      Float32Array.from(read(`component_${k}`), (value) => value * step));
    this.rest = new Float32Array(this.count * 3);
    this.positions = new Float32Array(this.count * 3);
    this.affine = new Float32Array(this.bones * 12);
    this.frame = -1;
    this.geometry = new BufferGeometry();
    this.geometry.setAttribute("position", new BufferAttribute(this.positions, 3));
    this.geometry.setIndex(new BufferAttribute(Uint32Array.from(read("faces")), 1));
  }

  matrices(frame) {
    for (let k = 0; k < this.bones; k++) {
      const at = (frame * this.bones + k) * 4;
      const [x, y, z, w] = [0, 1, 2, 3].map((c) => this.quaternions[at + c] / 32767);
      const s = 2 / (x * x + y * y + z * z + w * w);
      const m = this.affine, o = k * 12, t = (frame * this.bones + k) * 3;
      m[o] = 1 - s * (y * y + z * z); m[o + 1] = s * (x * y - z * w); m[o + 2] = s * (x * z + y * w);
      m[o + 4] = s * (x * y + z * w); m[o + 5] = 1 - s * (x * x + z * z); m[o + 6] = s * (y * z - x * w);
      m[o + 8] = s * (x * z - y * w); m[o + 9] = s * (y * z + x * w); m[o + 10] = 1 - s * (x * x + y * y);
      for (let c = 0; c < 3; c++) m[o + 4 * c + 3] = this.translations[t + c];
    }
  }

  pose(frame) {
    if (frame === this.frame) return this.positions;
    this.frame = frame;
    this.matrices(frame);
    this.rest.set(this.mean);
    this.components.forEach((component, k) => {
      const factor = this.coefficients[frame * this.components.length + k];
      for (let i = 0; i < component.length; i++) this.rest[i] += factor * component[i];
    });
    const { first, bone, weight, affine: m, rest, positions } = this;
    for (let v = 0; v < this.count; v++) {
      const x = rest[3 * v], y = rest[3 * v + 1], z = rest[3 * v + 2];
      let px = 0, py = 0, pz = 0;
      for (let e = first[v]; e < first[v + 1]; e++) {
        const w = weight[e] / 65535, o = bone[e] * 12;
        px += w * (m[o] * x + m[o + 1] * y + m[o + 2] * z + m[o + 3]);
        py += w * (m[o + 4] * x + m[o + 5] * y + m[o + 6] * z + m[o + 7]);
        pz += w * (m[o + 8] * x + m[o + 9] * y + m[o + 10] * z + m[o + 11]);
      }
      positions[3 * v] = px; positions[3 * v + 1] = py; positions[3 * v + 2] = pz;
    }
    this.geometry.attributes.position.needsUpdate = true;
    this.geometry.computeVertexNormals();
    this.geometry.computeBoundingSphere();
    return positions;
  }

}

const colorOf = ([r, g, b]) => new Color().setRGB(r, g, b, SRGBColorSpace);

function colorAt(distance, stops, out) {
  let k = 0;
  while (k < stops.length - 2 && distance > stops[k + 1][0]) k++;
  const [low, a] = stops[k], [high, b] = stops[k + 1];
  const share = Math.min(1, Math.max(0, (distance - low) / (high - low)));
  for (let c = 0; c < 3; c++) out[c] = a[c] + share * (b[c] - a[c]);
}

class Stage {
  constructor(layers) {
    this.layers = layers;
    this.host = byId("scene");
    this.renderer = new WebGLRenderer({ antialias: true, preserveDrawingBuffer: true });
    this.renderer.setPixelRatio(Math.min(2, window.devicePixelRatio));
    this.host.append(this.renderer.domElement);
    this.scene = new Scene();
    this.scene.background = colorOf([0.953, 0.957, 0.961]);
    this.camera = new PerspectiveCamera(32, 1, 0.05, 200);
    this.camera.up.set(...header.up);
    this.controls = new OrbitControls(this.camera, this.renderer.domElement);
    this.controls.enableDamping = true;
    this.body = new Group();
    this.scene.add(this.body);
    this.light();
    this.build();
    this.ground();
    new ResizeObserver(() => this.resize()).observe(this.host);
    this.resize();
  }

  light() {
    const up = new Vector3(...header.up);
    const hemisphere = new HemisphereLight(0xffffff, 0xb9bec6, 1.6);
    hemisphere.position.copy(up);
    this.key = new DirectionalLight(0xffffff, 1.9);
    this.camera.add(this.key);
    this.key.position.set(-1.5, 2.2, 1.5);
    this.scene.add(hemisphere, new AmbientLight(0xffffff, 0.35), this.camera);
  }

  build() {
    this.meshes = {};
    for (const layer of this.layers) {
      const color = colorOf(header.colors[layer.name]);
      if (layer.name === "bones") {
        this.meshes.bones = [new Mesh(layer.geometry,
          new MeshStandardMaterial({ color, roughness: 0.62, side: DoubleSide }))];
      } else {
        // Only the nearest layer of a translucent surface is blended: its depth is laid down first.
        const depth = new Mesh(layer.geometry, new MeshStandardMaterial({ colorWrite: false, side: FrontSide }));
        const look = new Mesh(layer.geometry,
          new MeshStandardMaterial({ color, transparent: true, roughness: 0.75, side: FrontSide }));
        depth.renderOrder = layer.name === "skin" ? 3 : 1;
        look.renderOrder = depth.renderOrder + 1;
        depth.material.transparent = true;
        this.meshes[layer.name] = [depth, look];
      }
      this.meshes[layer.name].forEach((mesh) => { mesh.frustumCulled = false; this.body.add(mesh); });
    }
    const skin = this.layer("skin");
    this.plainSkin = colorOf(header.colors.skin);
    skin.geometry.setAttribute("color", new BufferAttribute(new Float32Array(skin.count * 3), 3));
  }

  ground() {
    const grid = new GridHelper(header.ground.size, header.ground.size * 2, 0x9aa3ad, 0xd3d8dd);
    const up = new Vector3(...header.up);
    grid.quaternion.setFromUnitVectors(new Vector3(0, 1, 0), up);
    grid.position.set(...header.ground.at);
    this.grid = grid;
    this.scene.add(grid);
  }

  layer(name) { return this.layers.find((layer) => layer.name === name); }

  visible(name, on) { this.meshes[name].forEach((mesh) => { mesh.visible = on; }); }

  opacity(name, value) {
    const [depth, look] = this.meshes[name];
    look.material.opacity = value;
    look.material.depthWrite = value > 0.99;
    depth.visible = look.visible && value < 1;
  }

  residuals(on) {
    const target = this.layer("target"), skin = this.layer("skin");
    if (!target) return null;
    const a = skin.positions, b = target.pose(skin.frame), colors = skin.geometry.attributes.color;
    let total = 0, largest = 0;
    const rgb = [0, 0, 0], shade = new Color();
    for (let v = 0; v < skin.count; v++) {
      const distance = Math.hypot(a[3 * v] - b[3 * v], a[3 * v + 1] - b[3 * v + 1], a[3 * v + 2] - b[3 * v + 2]);
      total += distance; largest = Math.max(largest, distance);
      if (on) {
        colorAt(distance, header.residual_colors, rgb);
        shade.setRGB(...rgb, SRGBColorSpace);
        colors.setXYZ(v, shade.r, shade.g, shade.b);
      }
    }
    const material = this.meshes.skin[1].material;
    if (material.vertexColors !== on) { material.vertexColors = on; material.needsUpdate = true; }
    material.color.copy(on ? new Color(1, 1, 1) : this.plainSkin);
    colors.needsUpdate = on;
    return { mean: total / skin.count, largest };
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.host;
    if (!width || !height) return;
    this.renderer.setSize(width, height);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
  }

  look(direction) {  // "front", "side", "top" as seen by the person
    const skin = this.layer("skin");
    skin.geometry.computeBoundingBox();
    const middle = new Vector3();
    skin.geometry.boundingBox.getCenter(middle);
    middle.add(this.body.position);
    const size = skin.geometry.boundingBox.getSize(new Vector3()).length();
    const axis = new Vector3(...header.views[direction]);
    const room = size * 0.5 / Math.tan(this.camera.fov * Math.PI / 360) / Math.min(1, this.camera.aspect) * 1.12;
    this.camera.position.copy(middle).addScaledVector(axis, room);
    this.controls.target.copy(middle);
    this.controls.update();
  }

  render() { this.controls.update(); this.renderer.render(this.scene, this.camera); }
}

// --- curves -----------------------------------------------------------------------------------------------------------------

class Curve {
  constructor(index, player, host) {
    this.index = index;
    this.player = player;
    const { angles, sd, limits, active, times } = player.curves;
    const values = angles[index];
    const [low, high] = limits[index];
    const constant = (value) => (value === null ? times.map(() => null) : times.map(() => value));
    const held = values.map((value, f) => (active[index][f] ? value : null));
    const data = [times, values, constant(low), constant(high), held];
    const dashed = { stroke: "#b4533c", width: 1, dash: [4, 4], points: { show: false } };
    const series = [
      {}, header.moving ? { stroke: "#24476b", width: 1.6, points: { show: times.length < 2 } }
        : { stroke: "#24476b", width: 0, paths: () => null, points: { show: true, size: 5, fill: "#24476b" } }, dashed, dashed,
      { stroke: "#b4533c", width: 0, paths: () => null, points: { show: true, size: 5, fill: "#b4533c", stroke: "#b4533c" } },
    ];
    const bands = [];
    if (sd) {
      data.push(values.map((value, f) => value + sd[index][f]), values.map((value, f) => value - sd[index][f]));
      series.push({ width: 0, points: { show: false } }, { width: 0, points: { show: false } });
      bands.push({ series: [5, 6], fill: "rgba(36, 71, 107, 0.16)" });
    }
    this.box = document.createElement("figure");
    this.box.innerHTML = `<figcaption><span></span><output></output><button title="remove" aria-label="remove">×</button></figcaption>`;
    this.box.querySelector("span").textContent = header.angle_names[index].replaceAll("_", " ");
    this.box.querySelector("button").onclick = () => player.toggleCurve(index, false);
    host.append(this.box);
    this.plot = new uPlot({
      width: host.clientWidth, height: 132, legend: { show: false }, bands, series,
      cursor: { y: false, drag: { x: false, y: false } },
      scales: { x: { time: false }, y: { range: (_, a, b) => this.range(values, low, high, a, b) } },
      axes: [
        { size: 24, font: "11px system-ui", stroke: "#667", grid: { stroke: "#e4e7ea" }, ticks: { show: false } },
        { size: 44, font: "11px system-ui", stroke: "#667", grid: { stroke: "#e4e7ea" }, ticks: { show: false },
          values: (_, ticks) => ticks.map((tick) => `${tick}°`) },
      ],
      hooks: { draw: [(plot) => this.playhead(plot)] },
    }, data, this.box);
    this.plot.over.addEventListener("click", () => {
      if (this.plot.cursor.idx !== null) player.show(this.plot.cursor.idx);
    });
  }

  // Limits are drawn where the motion comes near them; far ones would flatten the curve.
  range(values, low, high) {
    let bottom = Infinity, top = -Infinity;
    for (const value of values) if (value !== null) { bottom = Math.min(bottom, value); top = Math.max(top, value); }
    if (bottom > top) return [-1, 1];
    const room = Math.max(4, 0.35 * (top - bottom));
    if (low !== null && low > bottom - room) bottom = Math.min(bottom, low);
    if (high !== null && high < top + room) top = Math.max(top, high);
    const margin = Math.max(1.5, 0.08 * (top - bottom));
    return [bottom - margin, top + margin];
  }

  playhead(plot) {
    const x = Math.round(plot.valToPos(this.player.curves.times[this.player.frame], "x", true));
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = "#111"; ctx.lineWidth = 1;
    ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
    ctx.restore();
  }

  update() {
    const value = this.player.curves.angles[this.index][this.player.frame];
    const spread = this.player.curves.sd?.[this.index][this.player.frame];
    this.box.querySelector("output").textContent = value === null ? "–"
      : `${value.toFixed(1)}°` + (spread != null && Number.isFinite(spread) ? ` ± ${spread.toFixed(1)}°` : "");
    this.plot.redraw(false);
  }

  remove() { this.plot.destroy(); this.box.remove(); }
}

// --- the page ---------------------------------------------------------------------------------------------------------------

class Player {
  constructor(buffer) {
    this.stage = new Stage(header.layers.map((description) => new Layer(buffer, description)));
    this.frame = 0; this.playing = false; this.speed = 1; this.last = 0; this.carry = 0;
    this.opened = new Map();
    this.curves = this.readCurves(buffer);
    this.controls();
    this.show(Number(location.hash.match(/^#frame=(\d+)$/)?.[1] ?? 0));
    this.stage.look("front");
    window.addEventListener("hashchange", () => location.reload());
    header.opened.forEach((index) => this.toggleCurve(index, true));
    requestAnimationFrame((now) => this.tick(now));
  }

  readCurves(buffer) {
    const frames = header.frames, count = header.angle_names.length;
    const degrees = (name) => {
      const all = readArray(buffer, header.arrays[name]);
      return Array.from({ length: count }, (_, a) => Array.from({ length: frames }, (_, f) => {
        const value = all[f * count + a];
        return Number.isFinite(value) ? value : null;
      }));
    };
    const bits = readArray(buffer, header.arrays.active);
    const active = Array.from({ length: count }, (_, a) => Array.from({ length: frames }, (_, f) => bits[f * count + a] === 1));
    return { angles: degrees("angles"), sd: header.arrays.sd ? degrees("sd") : null, limits: header.limits, active, times: header.times };
  }

  controls() {
    const slider = byId("slider");
    slider.max = header.frames - 1;
    slider.oninput = () => { this.play(false); this.show(Number(slider.value)); };
    byId("play").onclick = () => this.play(!this.playing);
    byId("speed").onchange = (event) => { this.speed = Number(event.target.value); };
    for (const name of ["skin", "bones", "target"]) {
      const box = byId(`show-${name}`);
      if (!this.stage.layer(name)) { box?.closest("label").remove(); continue; }
      box.onchange = () => this.refresh();
    }
    for (const id of ["opacity", "show-residuals", "show-ground", "follow"]) {
      if (byId(id)) byId(id).oninput = () => this.refresh();
    }
    for (const view of ["front", "side", "top"]) byId(`view-${view}`).onclick = () => this.stage.look(view);
    document.addEventListener("keydown", (event) => {
      if (event.target.matches("input[type=text], select")) return;
      if (event.key === " ") { event.preventDefault(); this.play(!this.playing); }
      if (event.key === "ArrowRight") { this.play(false); this.show(this.frame + 1); }
      if (event.key === "ArrowLeft") { this.play(false); this.show(this.frame - 1); }
    });
    const list = byId("angles");
    header.angle_names.forEach((name, index) => {
      const label = document.createElement("label");
      label.innerHTML = `<input type="checkbox" id="angle-${index}"><span></span>`;
      label.querySelector("span").textContent = name.replaceAll("_", " ");
      label.firstChild.onchange = (event) => this.toggleCurve(index, event.target.checked);
      list.append(label);
    });
    new ResizeObserver(() => this.opened.forEach((curve) =>
      curve.plot.setSize({ width: byId("curves").clientWidth, height: 132 }))).observe(byId("curves"));
  }

  toggleCurve(index, on) {
    byId(`angle-${index}`).checked = on;
    if (on && !this.opened.has(index)) this.opened.set(index, new Curve(index, this, byId("curves")));
    if (!on) { this.opened.get(index)?.remove(); this.opened.delete(index); }
    this.opened.get(index)?.update();
  }

  play(on) {
    this.playing = on && header.frames > 1;
    byId("play").textContent = this.playing ? "❚❚" : "▶";
    byId("play").setAttribute("aria-label", this.playing ? "pause" : "play");
  }

  show(frame) {
    this.frame = Math.min(header.frames - 1, Math.max(0, frame));
    byId("slider").value = this.frame;
    byId("label").textContent = header.labels[this.frame];
    this.refresh();
    this.opened.forEach((curve) => curve.update());
  }

  refresh() {
    const { stage, frame } = this;
    const on = (name) => Boolean(byId(`show-${name}`)?.checked);
    for (const layer of stage.layers) {
      stage.visible(layer.name, on(layer.name));
      if (on(layer.name) || layer.name === "skin") layer.pose(frame);
    }
    stage.opacity("skin", Number(byId("opacity").value) / 100);
    if (stage.layer("target")) stage.opacity("target", 0.45);
    const found = stage.residuals(on("residuals"));
    if (found) {
      byId("residual").textContent = `mean ${(found.mean * 1000).toFixed(1)} mm, max ${(found.largest * 1000).toFixed(0)}`;
    }
    stage.grid.visible = on("ground");
    stage.body.position.set(0, 0, 0);
    if (byId("follow").checked) {
      const [here, first] = [header.roots[frame], header.roots[0]];
      stage.body.position.set(...first.map((value, c) => value - here[c]));
    }
    this.limitsReached();
  }

  limitsReached() {
    const reached = header.angle_names.filter((_, a) => this.curves.active[a][this.frame]);
    const host = byId("reached");
    host.replaceChildren(...reached.map((name) => {
      const chip = document.createElement("button");
      chip.textContent = name.replaceAll("_", " ");
      chip.title = "show its curve";
      chip.onclick = () => this.toggleCurve(header.angle_names.indexOf(name), true);
      return chip;
    }));
    if (!reached.length) host.textContent = "none";
  }

  tick(now) {
    if (this.playing) {
      this.carry += Math.min(0.25, (now - this.last) / 1000) * header.rate * this.speed;
      const steps = Math.floor(this.carry);
      this.carry -= steps;
      if (steps) this.show((this.frame + steps) % header.frames);
    }
    this.last = now;
    this.stage.render();
    requestAnimationFrame((time) => this.tick(time));
  }
}

unpack(byId("data").textContent).then((buffer) => {
  window.viewer = new Player(buffer);
  document.body.dataset.ready = "yes";
});
