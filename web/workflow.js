// @ts-check
/**
 * A workflow as it is saved, read as graphs and edited in place. Nothing is known here of samplers or caches.
 *
 * Only what a change is about is touched: ids, sizes, groups, reroutes and promoted widgets stay because nobody writes
 * them. Ids are compared as text: front ends write numbers or strings.
 */

/** @typedef {{ name: string, type: any, link?: any, label?: string, slot_index?: number }} Input */
/** @typedef {{ name: string, type: any, links?: any[] | null, label?: string, slot_index?: number }} Output */
/** @typedef {{ id: any, type: string, mode?: number, pos: any, size: any, inputs?: Input[], outputs?: Output[], properties?: any, [more: string]: any }} Node */
/** @typedef {{ id: any, origin_id: any, origin_slot: number, target_id: any, target_slot: number, type: any, parentId?: any, [more: string]: any }} Link */
/** @typedef {{ graph: Graph, node: Node, slot: number }} Place a slot of a node: an input, or an output */

const LINK = ["id", "origin_id", "origin_slot", "target_id", "target_slot", "type"]; // as the main graph lists them
const [BORDER_IN, BORDER_OUT] = ["-10", "-20"]; // what stands for a node where a link crosses a subgraph's border
const GAP = 40; // between nodes

/** @param {any} one @param {any} other */
export const isSame = (one, other) => String(one) === String(other);

export class Graph {
  /** @param {Workflow} workflow @param {any} data */
  constructor(workflow, data) {
    this.workflow = workflow;
    this.data = data;
    this.isRoot = data === workflow.data;
    /** @type {Node[]} */
    this.nodes = data.nodes;
    /** @type {any[]} */
    this.reroutes = data.reroutes ?? data.extra?.reroutes ?? [];
    const more = new Map((data.extra?.linkExtensions ?? []).map((/** @type {any} */ one) => [String(one.id), one]));
    this.asLists = (data.links ?? []).some(Array.isArray);
    /** @type {Link[]} */
    this.links = (data.links ?? []).map((/** @type {any} */ link) =>
      Array.isArray(link) ? { ...more.get(String(link[0])), ...Object.fromEntries(LINK.map((name, i) => [name, link[i]])) } : link,
    );
  }

  /** Writes the links back in the form in which they came. */
  close() {
    this.data.nodes = this.nodes;
    this.data.links = this.asLists ? this.links.map((link) => LINK.map((name) => link[name])) : this.links;
    if (!this.asLists || !this.data.extra?.linkExtensions) return;
    const more = this.links.map((link) => Object.entries(link).filter(([name]) => name === "id" || !LINK.includes(name)));
    this.data.extra.linkExtensions = more.filter((entries) => entries.length > 1).map(Object.fromEntries);
  }

  /** @param {any} id */
  node(id) {
    return this.nodes.find((node) => isSame(node.id, id));
  }

  /** @param {any} id */
  link(id) {
    return id == null ? undefined : this.links.find((link) => isSame(link.id, id));
  }

  /** The list of link ids at a link's beginning. @param {Link} link @returns {any[]} */
  linksAtOrigin(link) {
    if (isSame(link.origin_id, BORDER_IN)) return (this.data.inputs[link.origin_slot].linkIds ??= []);
    const output = this.node(link.origin_id)?.outputs?.[link.origin_slot];
    return output ? (output.links ??= []) : [];
  }

  /** What goes out of a node's first output. @param {Node} node */
  linksFrom(node) {
    return this.links.filter((link) => isSame(link.origin_id, node.id) && link.origin_slot === 0);
  }

  /**
   * Puts other links in a link's place: in the list at its beginning, and on the reroutes before its end.
   * @param {Link} link @param {Link[]} others
   */
  hand(link, others) {
    const ids = others.map((other) => other.id);
    const swap = (/** @type {any[]} */ list) => list.splice(0, list.length, ...list.flatMap((id) => (isSame(id, link.id) ? ids : [id])));
    swap(this.linksAtOrigin(link));
    for (const reroute of this.chain(link.parentId)) swap((reroute.linkIds ??= []));
  }

  /** The reroutes of a link, the last one first. @param {any} id @returns {any[]} */
  chain(id) {
    const reroute = id == null ? undefined : this.reroutes.find((one) => isSame(one.id, id));
    return reroute ? [reroute, ...this.chain(reroute.parentId)] : [];
  }

  /** @param {Link} link */
  unlink(link) {
    this.hand(link, []);
    const target = this.node(link.target_id)?.inputs?.[link.target_slot];
    if (target && isSame(target.link, link.id)) target.link = null;
    this.links = this.links.filter((one) => one !== link);
  }

  /**
   * A node on the link that ends at a place: the reroutes stay before it.
   * @param {Place} place an input @param {Node} node @param {string} name of the node's own input
   */
  insert({ node: target, slot }, node, name) {
    const link = /** @type {Link} */ (this.link(target.inputs?.[slot].link));
    const inputs = /** @type {Input[]} */ (node.inputs);
    const index = inputs.findIndex((input) => input.name === name);
    node.id = this.workflow.newId("node");
    const first = { ...link, id: this.workflow.newId("link"), target_id: node.id, target_slot: index };
    this.hand(link, [first]);
    this.links.push(first);
    inputs[index].link = first.id;
    /** @type {Output[]} */ (node.outputs)[0].links = [link.id];
    Object.assign(link, { origin_id: node.id, origin_slot: 0 });
    delete link.parentId;
    this.place(node, target);
    this.nodes.push(node);
  }

  /** Left of another node, where nothing is in the way. @param {Node} node @param {Node} before */
  place(node, before) {
    const [width, height] = sizeOf(node);
    const [x, y] = [before.pos[0] - width - GAP, before.pos[1]];
    const free = (/** @type {number} */ top) =>
      this.nodes.every((other) => {
        const [otherWidth, otherHeight] = sizeOf(other);
        const beside = other.pos[0] >= x + width || other.pos[0] + otherWidth <= x;
        return beside || other.pos[1] >= top + height + GAP || other.pos[1] + otherHeight + GAP <= top;
      });
    const steps = Array.from({ length: 40 }, (_, i) => y + (i % 2 ? -1 : 1) * Math.ceil(i / 2) * GAP);
    node.pos = [x, steps.find(free) ?? y];
  }

  /** Takes a node away: what hung on its first output hangs on what came by one of its inputs. @param {Node} node @param {string} name */
  bypass(node, name) {
    const behind = this.linksFrom(node);
    for (const input of node.inputs ?? []) {
      const link = this.link(input.link);
      if (!link) continue;
      if (input.name !== name) this.unlink(link);
      else this.join(link, behind);
    }
    for (const link of this.linksFrom(node)) this.unlink(link); // nothing came in
    this.nodes = this.nodes.filter((one) => one !== node);
    this.forget(node, () => false);
  }

  /** Two links in a row, and more at the second place, become one each. @param {Link} first @param {Link[]} behind */
  join(first, behind) {
    for (const link of behind) {
      const start = this.chain(link.parentId).at(-1);
      if (start) start.parentId = first.parentId;
      else if (first.parentId != null) link.parentId = first.parentId;
      Object.assign(link, { origin_id: first.origin_id, origin_slot: first.origin_slot });
    }
    this.hand(first, behind);
    this.links = this.links.filter((link) => link !== first);
  }

  /** Another node in a node's place: links follow the names of inputs. @param {Node} node @param {Node} other */
  replace(node, other) {
    for (const old of node.inputs ?? []) {
      const index = other.inputs?.findIndex((input) => input.name === old.name) ?? -1;
      const link = this.link(old.link);
      if (index < 0 && link) this.unlink(link);
      if (index < 0) continue;
      /** @type {Input[]} */ (other.inputs)[index] = { .../** @type {Input[]} */ (other.inputs)[index], ...labelOf(old), link: old.link ?? null };
      if (link) link.target_slot = index;
    }
    for (const [i, old] of (node.outputs ?? []).entries()) Object.assign(other.outputs?.[i] ?? {}, labelOf(old), { links: old.links });
    this.nodes = this.nodes.map((one) => (one === node ? other : one));
    this.forget(node, (name) => !other.inputs || other.inputs.some((input) => input.name === name) || name === "control_after_generate");
  }

  /** What subgraph nodes show of a node's widgets, and no longer can. @param {Node} node @param {(widget: string) => boolean} has */
  forget(node, has) {
    for (const { node: host } of this.hosts()) {
      const shown = host.properties?.proxyWidgets;
      if (Array.isArray(shown)) host.properties.proxyWidgets = shown.filter(([id, name]) => !isSame(id, node.id) || has(name));
    }
  }

  /** The nodes that show this subgraph. */
  hosts() {
    return this.isRoot ? [] : this.workflow.graphs.flatMap((graph) => graph.nodes.filter((node) => node.type === this.data.id).map((node) => ({ graph, node })));
  }

  /** The outputs that an input is fed from, across the borders of subgraphs. @param {any} id of its link @returns {Place[]} */
  sources(id) {
    const link = this.link(id);
    if (!link) return [];
    if (isSame(link.origin_id, BORDER_IN)) return this.hosts().flatMap(({ graph, node }) => graph.sources(node.inputs?.[link.origin_slot]?.link));
    const node = this.node(link.origin_id);
    const inner = node && this.workflow.graphs.find((graph) => !graph.isRoot && graph.data.id === node.type);
    if (inner) return inner.links.filter((one) => isSame(one.target_id, BORDER_OUT) && one.target_slot === link.origin_slot).flatMap((one) => inner.sources(one.id));
    return node ? [{ graph: this, node, slot: link.origin_slot }] : [];
  }
}

export class Workflow {
  /** @param {any} data is edited; the main graph and, within it, the definitions of its subgraphs */
  constructor(data) {
    this.data = data;
    /** @type {Graph[]} */
    this.graphs = [data, ...(data.definitions?.subgraphs ?? [])].map((graph) => new Graph(this, graph));
  }

  close() {
    for (const graph of this.graphs) graph.close();
  }

  /** One that no graph has: newer front ends want it so. @param {"node" | "link"} kind */
  newId(kind) {
    const [last, state] = kind === "node" ? ["last_node_id", "lastNodeId"] : ["last_link_id", "lastLinkId"];
    const used = this.graphs.flatMap(({ data, nodes, links }) => [
      data[last] ?? 0,
      data.state?.[state] ?? 0,
      ...(kind === "node" ? nodes : links).map(({ id }) => Number(id) || 0),
    ]);
    const id = used.reduce((most, one) => Math.max(most, one), 0) + 1;
    for (const { data } of this.graphs) {
      if (last in data) data[last] = id;
      if (data.state && state in data.state) data.state[state] = id;
    }
    return id;
  }
}

/** @param {Input | Output} slot */
function labelOf({ label, slot_index: index }) {
  return { ...(label === undefined ? {} : { label }), ...(index === undefined ? {} : { slot_index: index }) };
}

/** Older files have objects with the keys 0 and 1. @param {Node} node @returns {[number, number]} */
function sizeOf({ size }) {
  return [Number(size[0]) || 0, Number(size[1]) || 0];
}
