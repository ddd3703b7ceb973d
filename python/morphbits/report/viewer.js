"use strict";
// The viewer of volumes: niivue and the volumes lie in the page, as base64 of what gzip packed.
(() => {
  const part = (name) => document.getElementById(`viewer-${name}`);
  const axes = ["x", "y", "z"];
  const { library, subjects } = JSON.parse(part("data").textContent);
  let viewer = null;
  let place = [0, 0, 0];

  const load = async () => {
    const packed = Uint8Array.from(atob(library), (letter) => letter.charCodeAt(0));
    const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(unpacked).text();
    document.head.append(script);
    if (!document.createElement("canvas").getContext("webgl2")) {
      throw new Error("this browser has no WebGL 2 here");
    }
    viewer = new niivue.Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [1, 0.65, 0, 0.8],
      crosshairWidth: 1,
      crosshairWidthUnit: "mm",
      dragAndDropEnabled: false,
      isColorbar: true,
      isNearestInterpolation: true,
      logLevel: "error",
      multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
      scrollRequiresFocus: true,
    });
    viewer.onLocationChange = moved;
    await viewer.attachToCanvas(part("canvas"));
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    await show();
  };

  const volume = (one, opacity) => {
    viewer.addColormap(one.name, one.colours);
    return niivue.NVImage.loadFromBase64({
      base64: one.nifti,
      name: `${one.name}.nii.gz`,
      colormap: one.name,
      cal_min: one.limits[0],
      cal_max: one.limits[1],
      colorbarVisible: "none" in one,
      opacity,
    });
  };

  const show = async () => {
    const [fixed, ...others] = subjects[part("subject").value];
    const chosen = others.find((one) => one.name === part("layer").value);
    const here = [...place];
    while (viewer.volumes.length) viewer.removeVolumeByIndex(0);
    viewer.addVolume(await volume(fixed, 1));
    const size = viewer.volumes[0].dimsRAS.slice(1, 4);
    axes.forEach((axis, k) => { part(axis).max = size[k] - 1; });
    if (chosen) {
      viewer.addVolume(await volume(chosen, Number(part("opacity").value)));
    }
    const wanted = here.some((at) => at > 0) ? here : size.map((n) => Math.floor(n / 2));
    viewer.scene.crosshairPos = viewer.vox2frac(wanted);
    viewer.createOnLocationChange();
    viewer.drawScene();
    part("status").textContent = "";
  };

  const moved = ({ mm, vox, values }) => {
    place = Array.from(vox, Math.round);
    axes.forEach((axis, k) => { part(axis).value = place[k]; });
    const numbers = values.map(({ name, value }) => {
      const one = subjects[part("subject").value].find((given) => `${given.name}.nii.gz` === name);
      const none = "none" in one && value < one.none / 2;
      return `${one.name}: ${none ? "none" : value.toPrecision(3)}`;
    });
    const at = Array.from(mm).slice(0, 3).map((number) => number.toFixed(0)).join(", ");
    part("place").textContent = `${at} mm; ${numbers.join("; ")}`;
  };

  const failed = (error) => {
    part("status").textContent = `The viewer does not work here: ${error.message}. `
      + "The pictures above need nothing.";
  };

  const start = () => load().then(() => {
    part("controls").disabled = false;
    part("subject").addEventListener("change", show);
    part("layer").addEventListener("change", show);
    part("opacity").addEventListener("input", () => {
      if (viewer.volumes.length > 1) viewer.setOpacity(1, Number(part("opacity").value));
    });
    axes.forEach((axis, k) => part(axis).addEventListener("input", () => {
      const step = [0, 0, 0];
      step[k] = Number(part(axis).value) - place[k];
      viewer.moveCrosshairInVox(...step);
    }));
    part("section").dataset.state = "ready";
  }).catch(failed);

  // decoding takes a second or two: only once somebody gets there
  const watch = new IntersectionObserver((seen) => {
    if (seen.some((one) => one.isIntersecting)) {
      watch.disconnect();
      start();
    }
  });
  watch.observe(part("canvas"));
})();
