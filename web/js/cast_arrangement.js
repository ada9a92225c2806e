/**
 * The text of the composer's canvas, and the geometry of dragging. No DOM here.
 *
 * The grammar is that of film/first_frame/arrangement.py, which alone decides what is valid; this reads what it can and
 * leaves the rest out.
 */

/** @typedef {{x: number, y: number, width: number, height: number}} Box in pixels of the canvas */
/** @typedef {{width: number, height: number}} Size */

const CANVAS = /^canvas\s+(\d+)\s*x\s*(\d+)$/i;
const PLACE = /^(\d+)(?:\s*:\s*(-?\d+)\s+(-?\d+)\s+(\d+)\s+(\d+))?$/;

/**
 * Boxes by reference number, in the order of the text, scaled to a canvas of this size; null for a number without one.
 * @param {string} text
 * @param {Size} size
 * @returns {Map<number, Box | null>}
 */
export function parse(text, size) {
  const places = new Map();
  let across = 1;
  let down = 1;
  for (const line of text.split("\n")) {
    const canvas = CANVAS.exec(line.trim());
    if (canvas) {
      across = size.width / Number(canvas[1]);
      down = size.height / Number(canvas[2]);
      continue;
    }
    const place = PLACE.exec(line.trim());
    if (!place) continue;
    const [x, y, width, height] = place.slice(2).map(Number);
    places.set(
      Number(place[1]),
      place[2] === undefined ? null : { x: x * across, y: y * down, width: width * across, height: height * down },
    );
  }
  return places;
}

/**
 * The inverse of `parse`.
 * @param {Map<number, Box | null>} places
 * @param {Size} size
 * @returns {string}
 */
export function format(places, size) {
  const lines = [];
  if ([...places.values()].some(Boolean)) lines.push(`canvas ${size.width} x ${size.height}`);
  for (const [number, box] of places) {
    if (!box) {
      lines.push(`${number}`);
      continue;
    }
    // Edges are rounded, not sizes, so that neighbours go on touching.
    const [left, top] = [Math.round(box.x), Math.round(box.y)];
    const width = Math.max(Math.round(box.x + box.width) - left, 1);
    const height = Math.max(Math.round(box.y + box.height) - top, 1);
    lines.push(`${number}: ${left} ${top} ${width} ${height}`);
  }
  return lines.join("\n");
}

/**
 * The box moved by up to `reach` so that an edge or its centre lies on one of a slot or of the canvas, and into the
 * canvas if it lies beyond.
 * @param {Box} box
 * @param {Box[]} slots
 * @param {Size} size
 * @param {number} reach
 * @returns {Box}
 */
export function snapped(box, slots, size, reach) {
  const rooms = [{ x: 0, y: 0, ...size }, ...slots];
  const shift = (start, length, side, extent) => {
    let best = reach;
    let by = 0;
    for (const room of rooms) {
      for (const part of [0, 0.5, 1]) {
        const distance = room[side] + room[extent] * part - (start + length * part);
        if (Math.abs(distance) < best) [best, by] = [Math.abs(distance), distance];
      }
    }
    return by;
  };
  const inside = (start, length, extent) => Math.max(0, Math.min(start, size[extent] - length));
  return {
    ...box,
    x: inside(box.x + shift(box.x, box.width, "x", "width"), box.width, "width"),
    y: inside(box.y + shift(box.y, box.height, "y", "height"), box.height, "height"),
  };
}

/**
 * The box in another width, on the canvas, its top left corner and aspect kept; its right edge snaps to those of slots.
 * @param {Box} box
 * @param {number} width
 * @param {Box[]} slots
 * @param {Size} size
 * @param {number} reach
 * @returns {Box}
 */
export function resized(box, width, slots, size, reach) {
  const edges = slots.map((slot) => slot.x + slot.width);
  const near = edges.find((edge) => Math.abs(edge - (box.x + width)) < reach);
  const aspect = box.width / box.height;
  const most = Math.min(size.width - box.x, (size.height - box.y) * aspect);
  const wide = Math.min(Math.max(near === undefined ? width : near - box.x, 8), most);
  return { ...box, width: wide, height: wide / aspect };
}

/**
 * The slot whose centre is nearest to the box's.
 * @param {Box} box
 * @param {Box[]} slots
 * @returns {Box | undefined}
 */
export function nearest(box, slots) {
  const distance = (slot) =>
    Math.hypot(slot.x + slot.width / 2 - box.x - box.width / 2, slot.y + slot.height / 2 - box.y - box.height / 2);
  return [...slots].sort((one, other) => distance(one) - distance(other))[0];
}
